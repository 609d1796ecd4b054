package main

import (
	"context"
	"fmt"
	"runtime"
	"time"
)

type (
	key     int
	missing struct{ int }
	user    struct{ id uint64 }
	team    struct{ id uint64 }
	userKey struct{}
	teamKey struct{}
)

func values(rows map[string]row) {
	for _, depth := range []int{10, 100} {
		ctx := context.Background()
		for i := range depth {
			ctx = context.WithValue(ctx, key(i), i)
		}
		rows[fmt.Sprintf("value-%d-hit", depth)] = lookUp(ctx, key(0))
		rows[fmt.Sprintf("value-%d-miss", depth)] = lookUp(ctx, missing{})
	}
	parent := live(context.Background())
	// Pointers, for which Go does not have to allocate.
	ann, blue := &user{1}, &team{2}
	rows["with-value"] = one(func() { sinkCtx = context.WithValue(parent, userKey{}, ann) })
	rows["request"] = one(func() { request(parent, ann, blue) })
}

func lookUp(ctx context.Context, key any) row {
	return func(n int) time.Duration {
		start := clock()
		for range n {
			sinkAny = ctx.Value(key)
		}
		return clock() - start
	}
}

// What a handler does with the contexts of one request.
func request(server context.Context, ann *user, blue *team) {
	ctx, cancel := context.WithCancel(server)
	defer cancel()
	ctx, stop := context.WithTimeout(ctx, 200*time.Millisecond)
	defer stop()
	ctx = context.WithValue(ctx, userKey{}, ann)
	ctx = context.WithValue(ctx, teamKey{}, blue)
	step, done := context.WithTimeout(ctx, 50*time.Millisecond)
	defer done()
	if step.Value(userKey{}).(*user).id != 1 || step.Value(teamKey{}).(*team).id != 2 {
		panic("other values")
	}
	sinkErr = step.Err()
}

// Returns the heap memory of a live context with a timeout, and of the handles beside it.
func held(name string) {
	const n = 100000
	const handles = 16 + 8 // the interface, the function
	parent := live(context.Background())
	contexts := make([]context.Context, n)
	cancels := make([]context.CancelFunc, n)
	waits := make([]<-chan struct{}, n)
	before := heap()
	for i := range n {
		contexts[i], cancels[i] = context.WithTimeout(parent, far)
		if name == "held-waiter" {
			waits[i] = contexts[i].Done()
		}
	}
	after := heap()
	report(map[string]any{"bytes": float64(after-before)/n + handles})
	runtime.KeepAlive(waits)
	for _, cancel := range cancels {
		cancel()
	}
}

func heap() uint64 {
	var stats runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}
