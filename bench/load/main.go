// Command jotd-goload puts the load of a real Go client on an etcd v3 endpoint: etcd's own
// clientv3, in a closed loop. Each worker sends its next request when it has the answer to the
// last one. It reports one line of JSON. The native generator (native/load) measures more, and
// costs less; this one tells what users of the Go client see.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// A slow answer is a measurement, not an error.
const requestTimeout = 60 * time.Second

// Keys in one transaction of the filling: half of what etcd takes.
const fillBatch = 64

type options struct {
	endpoints   string
	scenario    string
	conns       int
	concurrency int
	duration    time.Duration
	keys        int
	valueBytes  int
	prefix      string
}

// report is what one run found. Latencies are in microseconds.
type report struct {
	Scenario string         `json:"scenario"`
	Seconds  float64        `json:"seconds"`
	Requests int            `json:"requests"`
	Rate     float64        `json:"rate"`
	Errors   map[string]int `json:"errors"`
	P50      float64        `json:"p50_us"`
	P90      float64        `json:"p90_us"`
	P99      float64        `json:"p99_us"`
	P999     float64        `json:"p999_us"`
	Max      float64        `json:"max_us"`
}

// worker is one loop, and what it saw.
type worker struct {
	client *clientv3.Client
	keys   []string
	// The mod revision of each key, for transactions.
	revisions []int64
	value     string
	latencies []time.Duration
	errors    map[string]int
}

func main() {
	var o options
	flag.StringVar(&o.endpoints, "endpoints", "127.0.0.1:2379", "host:port,...")
	flag.StringVar(&o.scenario, "scenario", "put", "put, txn (kube-apiserver's update) or range")
	flag.IntVar(&o.conns, "conns", 8, "clients, each with a connection of its own")
	flag.IntVar(&o.concurrency, "concurrency", 64, "requests under way at once")
	flag.DurationVar(&o.duration, "duration", 5*time.Second, "how long to measure")
	flag.IntVar(&o.keys, "keys", 10000, "different keys")
	flag.IntVar(&o.valueBytes, "value-bytes", 1024, "bytes of a value")
	flag.StringVar(&o.prefix, "prefix", "/registry/pods/load/", "all keys begin with it")
	flag.Parse()
	found, err := run(&o)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(found)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "jotd-goload:", err)
		os.Exit(1)
	}
}

func run(o *options) (*report, error) {
	if o.conns < 1 || o.concurrency < 1 || o.keys < o.concurrency || o.valueBytes < 0 {
		return nil, errors.New("wants connections, workers, and a key for each worker")
	}
	clients, err := connect(o)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, client := range clients {
			_ = client.Close()
		}
	}()
	workers := make([]*worker, o.concurrency)
	share := o.keys / o.concurrency
	for n := range workers {
		w := &worker{
			client:    clients[n%len(clients)],
			keys:      make([]string, share),
			revisions: make([]int64, share),
			value:     strings.Repeat("v", o.valueBytes),
			errors:    map[string]int{},
		}
		for at := range w.keys {
			w.keys[at] = fmt.Sprintf("%s%08d", o.prefix, n*share+at)
		}
		workers[n] = w
	}
	var step func(*worker, context.Context, int) error
	switch o.scenario {
	case "put":
		step = (*worker).put
	case "txn":
		step = (*worker).txn
	case "range":
		step = (*worker).get
		if err := fill(workers); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("no scenario %q", o.scenario)
	}
	began := time.Now()
	end := began.Add(o.duration)
	var all sync.WaitGroup
	for _, w := range workers {
		all.Go(func() { w.loop(step, end) })
	}
	all.Wait()
	return summary(o.scenario, workers, time.Since(began)), nil
}

func connect(o *options) ([]*clientv3.Client, error) {
	clients := make([]*clientv3.Client, 0, min(o.conns, o.concurrency))
	for range cap(clients) {
		client, err := clientv3.New(clientv3.Config{
			Endpoints:   strings.Split(o.endpoints, ","),
			DialTimeout: 5 * time.Second,
			Logger:      zap.NewNop(),
		})
		if err != nil {
			return nil, err
		}
		// A server that is not there is named, instead of being waited for by each request.
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_, err = client.Get(ctx, o.prefix)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o.endpoints, err)
		}
		clients = append(clients, client)
	}
	return clients, nil
}

// fill writes all keys, many in one transaction.
func fill(workers []*worker) error {
	for _, w := range workers {
		for keys := range slices.Chunk(w.keys, fillBatch) {
			puts := make([]clientv3.Op, len(keys))
			for at, key := range keys {
				puts[at] = clientv3.OpPut(key, w.value)
			}
			ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
			_, err := w.client.Txn(ctx).Then(puts...).Commit()
			cancel()
			if err != nil {
				return fmt.Errorf("writing the keys: %w", err)
			}
		}
	}
	return nil
}

func (w *worker) loop(step func(*worker, context.Context, int) error, end time.Time) {
	for n := 0; ; n++ {
		began := time.Now()
		if !began.Before(end) {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
		err := step(w, ctx, n%len(w.keys))
		cancel()
		if err != nil {
			w.errors[err.Error()]++
			time.Sleep(10 * time.Millisecond)
			continue
		}
		w.latencies = append(w.latencies, time.Since(began))
	}
}

func (w *worker) put(ctx context.Context, at int) error {
	_, err := w.client.Put(ctx, w.keys[at], w.value)
	return err
}

func (w *worker) get(ctx context.Context, at int) error {
	_, err := w.client.Get(ctx, w.keys[at])
	return err
}

// txn updates a key as kube-apiserver does: if it is what we know, put; else get it.
func (w *worker) txn(ctx context.Context, at int) error {
	key := w.keys[at]
	answer, err := w.client.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", w.revisions[at])).
		Then(clientv3.OpPut(key, w.value)).
		Else(clientv3.OpGet(key)).
		Commit()
	if err != nil {
		return err
	}
	if answer.Succeeded {
		w.revisions[at] = answer.Header.Revision
		return nil
	}
	// An earlier run has left it there, or it is gone.
	w.revisions[at] = 0
	for _, kv := range answer.Responses[0].GetResponseRange().Kvs {
		w.revisions[at] = kv.ModRevision
	}
	return nil
}

func summary(scenario string, workers []*worker, took time.Duration) *report {
	found := &report{Scenario: scenario, Seconds: took.Seconds(), Errors: map[string]int{}}
	var all []time.Duration
	for _, w := range workers {
		all = append(all, w.latencies...)
		for text, count := range w.errors {
			found.Errors[text] += count
		}
	}
	slices.Sort(all)
	found.Requests = len(all)
	found.Rate = float64(len(all)) / found.Seconds
	quantile := func(q float64) float64 {
		if len(all) == 0 {
			return 0
		}
		return float64(all[min(int(q*float64(len(all))), len(all)-1)].Nanoseconds()) / 1e3
	}
	found.P50, found.P90, found.P99 = quantile(0.5), quantile(0.9), quantile(0.99)
	found.P999, found.Max = quantile(0.999), quantile(1)
	return found
}
