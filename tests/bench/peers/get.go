// What a good Go program does: net/http, a goroutine a URL or a number of them, connections kept.
// Prints one line of JSON like bare.c.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func cpuSeconds() float64 {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		log.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()).Seconds()
}

func readURLs(path string) []string {
	file, err := os.Open(path)
	if err != nil {
		log.Fatal(err)
	}
	defer file.Close()
	var urls []string
	for lines := bufio.NewScanner(file); lines.Scan(); {
		urls = append(urls, lines.Text())
	}
	return urls
}

func main() {
	conns := flag.Int("conns", 0, "goroutines; 0: one a URL")
	store := flag.String("store", "", "directory for a file a body; default: bodies are thrown away")
	dns := flag.String("dns", "", "IP:PORT of the name server")
	ca := flag.String("ca", "", "PEM file of trusted certificates")
	sessions := flag.Bool("sessions", false, "cache TLS sessions")
	keep := flag.Bool("keep", true, "keep connections")
	flag.Parse()
	log.SetFlags(0)

	began, cpu := time.Now(), cpuSeconds()
	urls := readURLs(flag.Arg(0))
	n := *conns
	if n == 0 || n > len(urls) {
		n = len(urls)
	}
	dialer := &net.Dialer{Timeout: 60 * time.Second}
	if *dns != "" {
		dialer.Resolver = &net.Resolver{PreferGo: true,
			Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, network, *dns)
			}}
	}
	transport := &http.Transport{
		DialContext:         dialer.DialContext,
		MaxIdleConns:        0, // no limit but that of each host
		MaxIdleConnsPerHost: n,
		DisableCompression:  true,
		DisableKeepAlives:   !*keep,
		TLSHandshakeTimeout: 60 * time.Second,
	}
	if *ca != "" {
		pem, err := os.ReadFile(*ca)
		if err != nil {
			log.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		transport.TLSClientConfig = &tls.Config{RootCAs: pool}
		if *sessions {
			transport.TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(1000)
		}
	}
	client := &http.Client{Transport: transport, Timeout: 120 * time.Second}

	var ok, failed, next int64
	var complain sync.Once
	fetch := func(i int) error {
		answer, err := client.Get(urls[i])
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != 200 {
			return fmt.Errorf("status %d", answer.StatusCode)
		}
		if *store == "" {
			_, err = io.Copy(io.Discard, answer.Body)
			return err
		}
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(*store, strconv.Itoa(i)), body, 0o600)
	}
	count := func(i int) {
		if err := fetch(i); err != nil {
			complain.Do(func() { log.Print(err) })
			atomic.AddInt64(&failed, 1)
		} else {
			atomic.AddInt64(&ok, 1)
		}
	}
	var all sync.WaitGroup
	all.Add(n)
	for g := 0; g < n; g++ {
		go func(g int) {
			defer all.Done()
			if *conns == 0 {
				count(g)
				return
			}
			for {
				i := int(atomic.AddInt64(&next, 1)) - 1
				if i >= len(urls) {
					return
				}
				count(i)
			}
		}(g)
	}
	all.Wait()
	fmt.Printf("{\"wall\": %.6f, \"cpu\": %.6f, \"ok\": %d, \"failed\": %d}\n",
		time.Since(began).Seconds(), cpuSeconds()-cpu, ok, failed)
}
