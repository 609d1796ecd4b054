package main

import (
	"syscall"
	"time"
)

// The time of this thread, not that of the wall: what else the machine runs in between, and what the
// collector does on other threads, does not count.
func clock() time.Duration {
	usage := usage()
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// How often this thread has had to give up its processor without asking to.
func preemptions() int64 {
	return usage().Nivcsw
}

func usage() (usage syscall.Rusage) {
	const thread = 1 // RUSAGE_THREAD
	if err := syscall.Getrusage(thread, &usage); err != nil {
		panic(err)
	}
	return usage
}
