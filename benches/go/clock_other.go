//go:build !linux

package main

import "time"

var begin = time.Now()

func clock() time.Duration {
	return time.Since(begin)
}

func preemptions() int64 {
	return 0
}
