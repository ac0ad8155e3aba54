// A program that uses unmodified go-redis over the named pipe of its first argument.
package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"time"

	"golang.zx2c4.com/wireguard/ipc/namedpipe" // the pipe of go-winio, in a package of Debian
	"gopkg.in/redis.v5"
)

func show(commands ...redis.Cmder) {
	for _, command := range commands {
		fmt.Println(command) // a command prints its result, too
	}
}

func main() {
	r := redis.NewClient(&redis.Options{
		Dialer: func() (net.Conn, error) { return namedpipe.DialTimeout(os.Args[1], 5*time.Second) },
	})
	show(r.Set("city", "dubai", time.Minute), r.Get("city"), r.Get("none"), r.TTL("city"))
	show(r.Incr("n"), r.IncrBy("n", 9), r.IncrByFloat("f", 0.5), r.Incr("city"))
	show(r.HSet("h", "a", "1"), r.HGet("h", "none"), r.HGetAll("h"))
	show(r.RPush("l", "a", "b"), r.LRange("l", 0, -1), r.LPop("l"), r.RPush("city", "x"))
	show(r.SAdd("s", "a", "b", "a"), r.SIsMember("s", "a"), r.SCard("s"))
	show(r.ZAdd("z", redis.Z{Score: 2.5, Member: "b"}, redis.Z{Score: 1, Member: "a"}))
	show(r.ZRangeWithScores("z", 0, -1))

	commands, err := r.TxPipelined(func(pipe *redis.Pipeline) error {
		pipe.Incr("n")
		pipe.Get("city")
		return nil
	})
	show(commands...)
	fmt.Println("transaction:", err)
	err = r.Watch(func(tx *redis.Tx) error {
		r.Set("city", "lima", 0)
		_, err := tx.Pipelined(func(pipe *redis.Pipeline) error {
			pipe.Set("city", "rome", 0)
			return nil
		})
		return err
	}, "city")
	fmt.Println("broken transaction:", err)
	show(r.Get("city"))

	commands, err = r.Pipelined(func(pipe *redis.Pipeline) error {
		for number := 0; number < 500; number++ {
			pipe.Set(fmt.Sprint("number:", number), number, 0)
		}
		return nil
	})
	fmt.Println("pipeline:", len(commands), err)
	keys := map[string]bool{}
	for page := r.Scan(0, "number:*", 50).Iterator(); page.Next(); {
		keys[page.Val()] = true
	}
	fmt.Println("scan:", len(keys))
	news, err := r.Subscribe("news")
	fmt.Println("subscribed:", err)
	if _, err := news.ReceiveTimeout(time.Minute); err != nil { // wait for the subscription
		fmt.Println(err)
	}
	show(r.Publish("news", "hello"))
	message, err := news.ReceiveMessage()
	fmt.Println("received:", message.Channel, message.Payload, err)
	news.Close()
	show(r.RPush("queue", "job"))
	show(r.BLPop(time.Minute, "none", "queue"))
	megabyte := bytes.Repeat([]byte("\x00\r\n\xff"), 1<<18)
	fmt.Println("megabyte:", r.Set("big", megabyte, 0).Err())
	found, err := r.Get("big").Bytes()
	fmt.Println("the same:", bytes.Equal(found, megabyte), err)
	fmt.Println("close:", r.Close())
}
