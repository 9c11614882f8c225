// Command jotd-load drives an etcd v3 endpoint with one kind of request and reports, as one line
// of JSON, how many it got done and how long they took. It is a closed loop: each worker sends its
// next request when it has the answer to the last one.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

type options struct {
	endpoint    string
	scenario    string
	conns       int
	concurrency int
	duration    time.Duration
	warmup      time.Duration
	keys        int
	valueSize   int
	limit       int
	watchers    int
	prefix      string
	fill        bool
	fillBatch   int
}

// result is what one run reports. Latencies are in microseconds.
type result struct {
	Scenario    string  `json:"scenario"`
	Conns       int     `json:"conns"`
	Concurrency int     `json:"concurrency"`
	Seconds     float64 `json:"seconds"`
	Requests    int     `json:"requests"`
	Errors      int     `json:"errors"`
	FirstError  string  `json:"first_error,omitempty"`
	Rate        float64 `json:"rate"`
	Megabytes   float64 `json:"megabytes_per_second"`
	P50         float64 `json:"p50_us"`
	P90         float64 `json:"p90_us"`
	P99         float64 `json:"p99_us"`
	P999        float64 `json:"p999_us"`
	Max         float64 `json:"max_us"`
	Events      int64   `json:"events,omitempty"`
	EventRate   float64 `json:"event_rate,omitempty"`
	EventP50    float64 `json:"event_p50_us,omitempty"`
	EventP99    float64 `json:"event_p99_us,omitempty"`
	Conflicts   int64   `json:"conflicts,omitempty"`
}

// raw hands messages through as bytes.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (raw) Name() string { return "proto" }

const (
	methodPut   = "/etcdserverpb.KV/Put"
	methodTxn   = "/etcdserverpb.KV/Txn"
	methodRange = "/etcdserverpb.KV/Range"
	methodWatch = "/etcdserverpb.Watch/Watch"
)

// requestTimeout is long: a slow answer is a measurement, not an error.
const requestTimeout = 60 * time.Second

func main() {
	var o options
	flag.StringVar(&o.endpoint, "endpoint", "127.0.0.1:2379", "host:port")
	flag.StringVar(&o.scenario, "scenario", "put", "put, txn, range, list, watch, or fill (write the keys, and no more)")
	flag.IntVar(&o.conns, "conns", 8, "connections")
	flag.IntVar(&o.concurrency, "concurrency", 64, "requests under way at once, over all connections")
	flag.DurationVar(&o.duration, "duration", 5*time.Second, "how long to measure")
	flag.DurationVar(&o.warmup, "warmup", time.Second, "how long to run before measuring")
	flag.IntVar(&o.keys, "keys", 10000, "different keys")
	flag.IntVar(&o.valueSize, "value-size", 1024, "bytes of a value")
	flag.IntVar(&o.limit, "limit", 0, "list: objects a page; 0: all at once")
	flag.IntVar(&o.watchers, "watchers", 100, "watch: streams that watch the prefix")
	flag.StringVar(&o.prefix, "prefix", "/registry/pods/load/", "prefix of all keys")
	flag.BoolVar(&o.fill, "fill", true, "range, list: write the keys first")
	flag.IntVar(&o.fillBatch, "fill-batch", 64, "keys in one transaction of that")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "jotd-load:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	if o.concurrency < o.conns {
		o.conns = o.concurrency
	}
	conns := make([]*grpc.ClientConn, o.conns)
	for i := range conns {
		conn, err := grpc.NewClient(
			"passthrough:///"+o.endpoint,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(math.MaxInt32)),
			// Fixed windows, so that no run is spent on finding them.
			grpc.WithInitialWindowSize(4<<20),
			grpc.WithInitialConnWindowSize(8<<20),
		)
		if err != nil {
			return err
		}
		defer conn.Close()
		conns[i] = conn
	}
	l := &load{options: o, conns: conns}
	if o.scenario == "fill" || o.fill && (o.scenario == "range" || o.scenario == "list") {
		began := time.Now()
		if err := l.fillKeys(); err != nil {
			return fmt.Errorf("writing the keys: %w", err)
		}
		if o.scenario == "fill" {
			seconds := time.Since(began).Seconds()
			return json.NewEncoder(os.Stdout).Encode(result{
				Scenario: "fill", Conns: o.conns, Concurrency: o.concurrency, Seconds: seconds,
				Requests: o.keys, Rate: float64(o.keys) / seconds,
			})
		}
	}
	var work func(worker int) func() (int, error)
	switch o.scenario {
	case "put", "watch":
		work = l.put
	case "txn":
		work = l.txn
	case "range":
		work = l.get
	case "list":
		work = l.list
	default:
		return fmt.Errorf("no scenario %q", o.scenario)
	}
	var watch *watching
	if o.scenario == "watch" {
		var err error
		if watch, err = l.startWatching(); err != nil {
			return err
		}
	}
	res := l.measure(work, watch)
	return json.NewEncoder(os.Stdout).Encode(res)
}

type load struct {
	options
	conns     []*grpc.ClientConn
	conflicts atomic.Int64
}

func (l *load) call(worker int, method string, request []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	var response []byte
	err := l.conns[worker%len(l.conns)].Invoke(ctx, method, &request, &response)
	return response, err
}

func (l *load) key(n int) []byte {
	return fmt.Appendf(nil, "%s%08d", l.prefix, n)
}

func (l *load) value() []byte {
	value := make([]byte, l.valueSize)
	for i := range value {
		value[i] = byte('a' + i%23)
	}
	return value
}

// share is how many of the keys a worker has for itself, so that updates do not conflict.
func (l *load) share() int {
	return max(l.keys/l.concurrency, 1)
}

func (l *load) put(worker int) func() (int, error) {
	value, n := l.value(), 0
	return func() (int, error) {
		n++
		if len(value) >= 8 {
			stamp(value)
		}
		response, err := l.call(worker, methodPut, putRequest(l.key(worker*l.share()+n%l.share()), value))
		return len(response), err
	}
}

func (l *load) txn(worker int) func() (int, error) {
	value, n := l.value(), 0
	revisions := make([]int64, l.share())
	return func() (int, error) {
		n++
		mine := n % len(revisions)
		request := updateRequest(l.key(worker*l.share()+mine), value, revisions[mine])
		response, err := l.call(worker, methodTxn, request)
		if err != nil {
			return 0, err
		}
		if !txnSucceeded(response) {
			l.conflicts.Add(1)
			revisions[mine] = modRevision(response)
		} else {
			revisions[mine] = headerRevision(response)
		}
		return len(response), nil
	}
}

// modRevision is that of the object which the Else branch of an update read.
func modRevision(txn []byte) (revision int64) {
	fields(txn, func(number int, op []byte, _ uint64) {
		if number != 3 {
			return
		}
		fields(op, func(_ int, answer []byte, _ uint64) {
			fields(answer, func(number int, kv []byte, _ uint64) {
				if number == 2 {
					fields(kv, func(number int, _ []byte, n uint64) {
						if number == 3 {
							revision = int64(n)
						}
					})
				}
			})
		})
	})
	return revision
}

func (l *load) get(worker int) func() (int, error) {
	n := worker * 7919
	return func() (int, error) {
		n += 104729
		response, err := l.call(worker, methodRange, rangeRequest(l.key(n%l.keys), nil, 0, 0))
		return len(response), err
	}
}

// list reads all objects, in one answer or in pages of one revision.
func (l *load) list(worker int) func() (int, error) {
	prefix := []byte(l.prefix)
	end := prefixEnd(prefix)
	return func() (int, error) {
		if l.limit == 0 {
			response, err := l.call(worker, methodRange, rangeRequest(prefix, end, 0, 0))
			return len(response), err
		}
		key, revision, size := prefix, int64(0), 0
		for {
			response, err := l.call(worker, methodRange, rangeRequest(key, end, int64(l.limit), revision))
			if err != nil {
				return size, err
			}
			size += len(response)
			if revision == 0 {
				revision = headerRevision(response)
			}
			last, more := lastKey(response)
			if !more {
				return size, nil
			}
			key = append(append([]byte(nil), last...), 0)
		}
	}
}

// lastKey is the last key of a RangeResponse, and whether there are more behind it.
func lastKey(response []byte) (key []byte, more bool) {
	var last []byte
	fields(response, func(number int, value []byte, n uint64) {
		switch number {
		case 2:
			last = value
		case 3:
			more = n != 0
		}
	})
	fields(last, func(number int, value []byte, _ uint64) {
		if number == 1 {
			key = value
		}
	})
	return key, more
}

// fillKeys writes every key once, many in one transaction.
func (l *load) fillKeys() error {
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for worker := range l.concurrency {
		wg.Go(func() {
			value := l.value()
			for failed.Load() == nil {
				end := int(next.Add(int64(l.fillBatch)))
				var request []byte
				for n := end - l.fillBatch; n < min(end, l.keys); n++ {
					request = fieldBytes(request, 2, fieldBytes(nil, 2, putRequest(l.key(n), value)))
				}
				if request == nil {
					return
				}
				if _, err := l.call(worker, methodTxn, request); err != nil {
					failed.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

const (
	warming = iota
	measuring
	done
)

// measure runs all workers and collects the latencies of the middle part.
func (l *load) measure(work func(worker int) func() (int, error), watch *watching) result {
	var phase atomic.Int32
	var wg sync.WaitGroup
	took := make([][]time.Duration, l.concurrency)
	sizes := make([]int, l.concurrency)
	errs := make([]int, l.concurrency)
	var first atomic.Pointer[string]
	for worker := range l.concurrency {
		wg.Go(func() {
			step := work(worker)
			for {
				now := phase.Load()
				if now == done {
					return
				}
				since := time.Now()
				size, err := step()
				latency := time.Since(since)
				if now != measuring {
					if err != nil {
						time.Sleep(10 * time.Millisecond)
					}
					continue
				}
				if err != nil {
					errs[worker]++
					text := err.Error()
					first.CompareAndSwap(nil, &text)
					time.Sleep(10 * time.Millisecond)
					continue
				}
				took[worker] = append(took[worker], latency)
				sizes[worker] += size
			}
		})
	}
	time.Sleep(l.warmup)
	began := time.Now()
	if watch != nil {
		watch.measuring.Store(true)
	}
	phase.Store(measuring)
	time.Sleep(l.duration)
	phase.Store(done)
	seconds := time.Since(began).Seconds()
	if watch != nil {
		watch.measuring.Store(false)
	}
	wg.Wait()

	res := result{
		Scenario: l.scenario, Conns: len(l.conns), Concurrency: l.concurrency, Seconds: seconds,
		Conflicts: l.conflicts.Load(),
	}
	var all []time.Duration
	size := 0
	for worker := range took {
		all = append(all, took[worker]...)
		size += sizes[worker]
		res.Errors += errs[worker]
	}
	if text := first.Load(); text != nil {
		res.FirstError = *text
	}
	res.Requests = len(all)
	res.Rate = float64(len(all)) / seconds
	res.Megabytes = float64(size) / seconds / 1e6
	at := quantiles(all)
	res.P50, res.P90, res.P99, res.P999, res.Max = at(0.5), at(0.9), at(0.99), at(0.999), at(1)
	if watch != nil {
		lags := watch.lags()
		res.Events = watch.events.Load()
		res.EventRate = float64(res.Events) / seconds
		at := quantiles(lags)
		res.EventP50, res.EventP99 = at(0.5), at(0.99)
	}
	return res
}

// quantiles sorts, and answers in microseconds.
func quantiles(all []time.Duration) func(q float64) float64 {
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	return func(q float64) float64 {
		if len(all) == 0 {
			return 0
		}
		at := min(int(q*float64(len(all))), len(all)-1)
		return float64(all[at].Nanoseconds()) / 1e3
	}
}
