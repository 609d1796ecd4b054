package main

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

func rows() map[string]row {
	rows := map[string]row{}
	derive(rows)
	addQueries(rows)
	wait(rows)
	tree(rows)
	values(rows)
	return rows
}

// Keeps contexts alive as long as the program runs.
var guards []context.CancelFunc

func live(parent context.Context) context.Context {
	ctx, cancel := context.WithCancel(parent)
	guards = append(guards, cancel)
	return ctx
}

func limited(parent context.Context) context.Context {
	ctx, cancel := context.WithTimeout(parent, far)
	guards = append(guards, cancel)
	return ctx
}

func derive(rows map[string]row) {
	parent := live(context.Background())
	plain := func() {
		ctx, cancel := context.WithCancel(parent)
		sinkCtx = ctx
		cancel()
	}
	rows["derive-drop"] = one(plain)
	rows["derive-cancel"] = one(plain)
	rows["derive-timeout"] = one(func() {
		ctx, cancel := context.WithTimeout(parent, far)
		sinkCtx = ctx
		cancel()
	})
	rows["derive-2-threads"] = two(one(func() {
		ctx, cancel := context.WithCancel(parent)
		runtime.KeepAlive(ctx)
		cancel()
	}))
}

func addQueries(rows map[string]row) {
	for _, depth := range []int{1, 10, 1000} {
		ctx := context.Background()
		for range depth {
			ctx = live(ctx)
		}
		rows[fmt.Sprintf("is-done-%d", depth)] = queried(ctx)
	}
	late := limited(context.Background())
	rows["is-done-deadline"] = queried(late)
	shared := queried(live(context.Background()))
	rows["is-done-2-threads"] = two(shared)
	rows["err-2-threads"] = two(shared)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	rows["err-ended"] = queried(ended)
}

// The loop itself queries, without a function call for each iteration, which would cost as much.
func queried(ctx context.Context) row {
	return func(n int) time.Duration {
		ended := 0
		start := clock()
		for range n {
			if ctx.Err() != nil {
				ended++
			}
		}
		took := clock() - start
		runtime.KeepAlive(ended)
		return took
	}
}

// An iteration in Go is a select with a channel that is ready: less than in Rust, where it is also pending once.
func iterate(ctx context.Context, ready chan struct{}) {
	select {
	case <-ctx.Done():
		panic("it has not ended")
	case <-ready:
	}
}

func iterations(ctx context.Context, ready chan struct{}) row {
	return func(n int) time.Duration {
		start := clock()
		for range n {
			iterate(ctx, ready)
		}
		return clock() - start
	}
}

func wait(rows map[string]row) {
	ready := make(chan struct{})
	close(ready)
	parent := live(context.Background())
	late := limited(context.Background())
	rows["turn"] = iterations(parent, ready)
	rows["turn-deadline"] = iterations(late, ready)
	rows["derive-turn"] = one(func() {
		ctx, cancel := context.WithCancel(parent)
		iterate(ctx, ready)
		cancel()
	})
	rows["derive-timeout-turn"] = one(func() {
		ctx, cancel := context.WithTimeout(parent, far)
		iterate(ctx, ready)
		cancel()
	})
}

func tree(rows map[string]row) {
	for _, depth := range []int{1, 10, 100, 1000} {
		rows[fmt.Sprintf("chain-%d", depth)] = one(func() { chain(depth) })
	}
	for _, width := range []int{10, 1000, 100000} {
		rows[fmt.Sprintf("fan-out-%d", width)] = one(func() { fanOut(width) })
	}
	for _, tasks := range []int{1, 100, 10000} {
		rows[fmt.Sprintf("wake-%d", tasks)] = wake(tasks)
	}
}

func chain(depth int) {
	ctx, root := context.WithCancel(context.Background())
	cancels := make([]context.CancelFunc, 0, depth)
	for range depth - 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		cancels = append(cancels, cancel)
	}
	root()
	if ctx.Err() == nil {
		panic("the last has ended")
	}
	for i := len(cancels) - 1; i >= 0; i-- {
		cancels[i]()
	}
}

// Waited on: its Done channel exists, as for a goroutine that is about to receive from it.
func fanOut(width int) {
	root, cancel := context.WithCancel(context.Background())
	waits := make([]<-chan struct{}, 0, width)
	cancels := make([]context.CancelFunc, 0, width)
	for range width {
		ctx, cancel := context.WithCancel(root)
		waits = append(waits, ctx.Done())
		cancels = append(cancels, cancel)
	}
	cancel()
	for _, wait := range waits {
		<-wait
	}
	for _, cancel := range cancels {
		cancel()
	}
}

// From the cancel until the last goroutine runs.
func wake(tasks int) row {
	return func(n int) time.Duration {
		var took time.Duration
		for range n {
			ctx, cancel := context.WithCancel(context.Background())
			var waiting, awake sync.WaitGroup
			var last atomic.Int64
			var start time.Time
			waiting.Add(tasks)
			awake.Add(tasks)
			for range tasks {
				go func() {
					waiting.Done()
					<-ctx.Done()
					if last.Add(1) == int64(tasks) {
						took += time.Since(start)
					}
					awake.Done()
				}()
			}
			waiting.Wait()
			runtime.Gosched()
			start = time.Now()
			cancel()
			awake.Wait()
		}
		return took
	}
}
