param([string]$Name = "KeyValuePipe")
$ErrorActionPreference = "Stop"
$pipe = New-Object System.IO.Pipes.NamedPipeClientStream(".", $Name, "InOut")
try {
    $pipe.Connect(5000)
    $reader = New-Object System.IO.StreamReader($pipe)
    foreach ($command in "SET city dubai", "GET city") {
        $message = [Text.Encoding]::UTF8.GetBytes("$command`n")
        $pipe.Write($message, 0, $message.Length)  # one write is one message
        $reader.ReadLine()
    }
} finally {
    $pipe.Dispose()
}
