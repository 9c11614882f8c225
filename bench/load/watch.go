package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
)

// epoch keeps the clock of time stamps monotonic.
var epoch = time.Now()

// stamp writes the time into the beginning of a value.
func stamp(value []byte) {
	binary.BigEndian.PutUint64(value, uint64(time.Since(epoch)))
}

// watching is a number of streams that all watch the prefix, and what they got.
type watching struct {
	measuring atomic.Bool
	events    atomic.Int64
	mu        sync.Mutex
	sampled   []time.Duration
}

// sampleEvery: the lag of one event in so many is kept.
const sampleEvery = 16

func (l *load) startWatching() (*watching, error) {
	w := &watching{}
	desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	request := watchRequest([]byte(l.prefix), prefixEnd([]byte(l.prefix)))
	for n := range l.watchers {
		stream, err := l.conns[n%len(l.conns)].NewStream(context.Background(), desc, methodWatch)
		if err != nil {
			return nil, err
		}
		if err := stream.SendMsg(&request); err != nil {
			return nil, err
		}
		var response []byte
		if err := stream.RecvMsg(&response); err != nil {
			return nil, err
		}
		if !watchEvents(response, func([]byte) {}) {
			return nil, fmt.Errorf("a watch was not created")
		}
		go w.receive(stream)
	}
	return w, nil
}

func (w *watching) receive(stream grpc.ClientStream) {
	seen := 0
	for {
		var response []byte
		if stream.RecvMsg(&response) != nil {
			return
		}
		now := time.Since(epoch)
		events := 0
		watchEvents(response, func(value []byte) {
			events++
			seen++
			if seen%sampleEvery == 0 && len(value) >= 8 && w.measuring.Load() {
				lag := now - time.Duration(binary.BigEndian.Uint64(value))
				w.mu.Lock()
				w.sampled = append(w.sampled, lag)
				w.mu.Unlock()
			}
		})
		if w.measuring.Load() {
			w.events.Add(int64(events))
		}
	}
}

func (w *watching) lags() []time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]time.Duration(nil), w.sampled...)
}
