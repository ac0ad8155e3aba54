package main

import (
	"bufio"
	"fmt"
	"log"
	"os"
)

func main() {
	name := "KeyValuePipe"
	if len(os.Args) > 1 {
		name = os.Args[1]
	}
	pipe, err := os.OpenFile(`\\.\pipe\`+name, os.O_RDWR, 0)
	if err != nil {
		log.Fatal(err)
	}
	defer pipe.Close()
	replies := bufio.NewReader(pipe)
	for _, command := range []string{"SET city dubai", "GET city"} {
		fmt.Fprintln(pipe, command)
		reply, err := replies.ReadString('\n')
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(reply)
	}
}
