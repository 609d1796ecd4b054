package main

import (
	"syscall"
	"time"
)

// The CPU time of this thread, which does not include other programs, or the collector on other threads.
func clock() time.Duration {
	usage := usage()
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// Returns how often this thread was preempted.
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
