package main

import (
	"syscall"
	"time"
)

// The time of this thread, not that of the wall: what else the machine runs in between, and what the
// collector does on other threads, does not count.
func clock() time.Duration {
	const thread = 1 // RUSAGE_THREAD
	var usage syscall.Rusage
	if err := syscall.Getrusage(thread, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
