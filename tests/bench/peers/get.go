// Go's net/http, as people use it: one goroutine a URL, at most -c at once (0: no bound), bodies
// read whole, into files of -dir if that is given. Prints JSON.
package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	c := flag.Int("c", 0, "requests at once; 0: all")
	list := flag.String("list", "", "file of URLs")
	dir := flag.String("dir", "", "a file for each body here")
	ca := flag.String("ca", "", "PEM of the trusted CA")
	sessions := flag.Bool("sessions", false, "resume TLS sessions")
	flag.Parse()

	file, err := os.Open(*list)
	if err != nil {
		panic(err)
	}
	var urls []string
	for s := bufio.NewScanner(file); s.Scan(); {
		urls = append(urls, s.Text())
	}
	config := &tls.Config{}
	if *ca != "" {
		pem, err := os.ReadFile(*ca)
		if err != nil {
			panic(err)
		}
		config.RootCAs = x509.NewCertPool()
		config.RootCAs.AppendCertsFromPEM(pem)
	}
	if *sessions {
		config.ClientSessionCache = tls.NewLRUClientSessionCache(1024)
	}
	kept := *c
	if kept == 0 {
		kept = len(urls)
	}
	client := &http.Client{
		Timeout:   120 * time.Second,
		Transport: &http.Transport{MaxIdleConnsPerHost: kept, TLSClientConfig: config},
	}

	var failed int64
	get := func(i int) {
		r, err := client.Get(urls[i])
		if err != nil {
			atomic.AddInt64(&failed, 1)
			return
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err == nil && *dir != "" {
			err = os.WriteFile(*dir+"/"+strconv.Itoa(i), body, 0600)
		}
		if err != nil || r.StatusCode != 200 {
			atomic.AddInt64(&failed, 1)
		}
	}
	var group sync.WaitGroup
	begin := time.Now()
	if *c == 0 {
		group.Add(len(urls))
		for i := range urls {
			go func(i int) { defer group.Done(); get(i) }(i)
		}
	} else {
		next := int64(-1)
		group.Add(*c)
		for k := 0; k < *c; k++ {
			go func() {
				defer group.Done()
				for i := atomic.AddInt64(&next, 1); i < int64(len(urls)); i = atomic.AddInt64(&next, 1) {
					get(int(i))
				}
			}()
		}
	}
	group.Wait()
	wall := time.Since(begin).Seconds()
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	cpu := float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
	fmt.Printf("{\"wall\": %.4f, \"cpu\": %.3f, \"done\": %d, \"failed\": %d}\n", wall, cpu,
		len(urls), failed)
}
