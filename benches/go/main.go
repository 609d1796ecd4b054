// The cost of Go's context: `contextbench ROW`, where ROW is one of `compare`'s. It prints the nanoseconds,
// allocations and bytes per operation as a line of JSON. Run by benches/compare-go.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"sort"
	"strings"
	"sync"
	"time"
)

// A row does its work n times, and returns how long that took.
type row func(n int) time.Duration

// Prevent the compiler from removing the work.
var (
	sinkCtx context.Context
	sinkErr error
	sinkAny any
)

// Distant enough that no deadline passes during a measurement.
const far = 10 * time.Minute

func timed(n int, op func()) time.Duration {
	start := clock()
	for range n {
		op()
	}
	return clock() - start
}

func one(op func()) row {
	return func(n int) time.Duration { return timed(n, op) }
}

// Runs the work on two goroutines at once, n times each, and returns the wall-clock time of one of them. Repeats
// the measurement if another program used one of the processors meanwhile.
func two(work row) row {
	return func(n int) time.Duration {
		lanes := both(work, n)
		for range 100 {
			if sideBySide(lanes) {
				break
			}
			lanes = both(work, n)
		}
		return (lanes[0].end.Sub(lanes[0].start) + lanes[1].end.Sub(lanes[1].start)) / 2
	}
}

// What one of two concurrent threads did, and when.
type lane struct {
	start, end time.Time
	preempted  bool
}

func both(work row, n int) [2]lane {
	var ready, done sync.WaitGroup
	var lanes [2]lane
	start := make(chan struct{})
	for i := range lanes {
		ready.Add(1)
		done.Add(1)
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			ready.Done()
			<-start
			before, begin := preemptions(), time.Now()
			work(n)
			lanes[i] = lane{begin, time.Now(), preemptions() != before}
			done.Done()
		}()
	}
	ready.Wait()
	close(start)
	done.Wait()
	return lanes
}

func sideBySide(lanes [2]lane) bool {
	a, b := lanes[0], lanes[1]
	start, end := a.start, a.end
	if b.start.After(start) {
		start = b.start
	}
	if b.end.Before(end) {
		end = b.end
	}
	all := a.end.Sub(a.start) + b.end.Sub(b.start)
	return !a.preempted && !b.preempted && end.Sub(start) > all*4/10
}

func main() {
	if len(os.Args) != 2 {
		list()
		return
	}
	run, ok := rows()[os.Args[1]]
	if !ok {
		held(os.Args[1])
		return
	}
	// The clock is that of a thread. Locking would slow down goroutines that wake each other.
	if !strings.HasPrefix(os.Args[1], "wake-") {
		runtime.LockOSThread()
	}
	n := calibrate(run, 2*time.Millisecond)
	var samples []float64
	for range 25 {
		samples = append(samples, float64(run(n).Nanoseconds())/float64(n))
	}
	sort.Float64s(samples)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	run(n)
	runtime.ReadMemStats(&after)
	report(map[string]any{
		"ns":          samples[len(samples)/2],
		"allocations": float64(after.Mallocs-before.Mallocs) / float64(n),
		"bytes":       float64(after.TotalAlloc-before.TotalAlloc) / float64(n),
	})
}

// Returns how many iterations make a sample.
func calibrate(run row, sample time.Duration) int {
	n := 1
	for {
		took := run(n)
		if took >= sample {
			return n
		}
		wanted := float64(sample) / max(float64(took), 1) * 1.1
		n = int(float64(n)*min(max(wanted, 1.5), 10)) + 1
	}
}

func list() {
	names := []string{"held-idle", "held-waiter"}
	for name := range rows() {
		names = append(names, name)
	}
	sort.Strings(names)
	report(map[string]any{"version": runtime.Version(), "rows": names})
}

func report(what map[string]any) {
	line, err := json.Marshal(what)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}
