using System;
using System.IO;
using System.IO.Pipes;
using System.Text;

static class Client
{
    static void Main(string[] args)
    {
        string name = args.Length > 0 ? args[0] : "KeyValuePipe";
        using (var pipe = new NamedPipeClientStream(".", name, PipeDirection.InOut))
        {
            pipe.Connect(5000);
            var reader = new StreamReader(pipe);
            foreach (string command in new[] { "SET city dubai", "GET city" })
            {
                byte[] message = Encoding.UTF8.GetBytes(command + "\n");
                pipe.Write(message, 0, message.Length);  // one write is one message
                Console.WriteLine(reader.ReadLine());
            }
        }
    }
}
