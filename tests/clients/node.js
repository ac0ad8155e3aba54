const net = require("net");
const readline = require("readline");

const name = process.argv[2] || "KeyValuePipe";
const socket = `${process.env.TMPDIR || "/tmp"}/CoreFxPipe_${name}`;
const pipe = net.connect(process.platform === "win32" ? `\\\\.\\pipe\\${name}` : socket);

const commands = ["SET city dubai\n", "GET city\n"];
pipe.write(commands.shift());
readline.createInterface({ input: pipe }).on("line", (reply) => {
  console.log(reply);
  // Each write is one message, so the next command waits for the reply to the last.
  if (commands.length) pipe.write(commands.shift());
  else pipe.destroy();
});
