//! Counts what each thread allocates, so that other tests do not affect the result.

#![allow(dead_code, reason = "every suite is a crate of its own and uses a part of this")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static TAKEN: Cell<usize> = const { Cell::new(0) };
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// Returns the bytes that this thread has allocated and not freed.
pub fn live() -> isize {
    LIVE.get()
}

/// Returns all bytes that this thread has allocated.
pub fn taken() -> usize {
    TAKEN.get()
}

/// Returns the number of allocations of this thread.
pub fn allocations() -> usize {
    ALLOCATIONS.get()
}

fn add(size: usize) {
    // Not available while the thread ends, when the counts are no longer used.
    let _ = LIVE.try_with(|live| live.set(live.get() + size as isize));
    let _ = TAKEN.try_with(|taken| taken.set(taken.get() + size));
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

fn remove(size: usize) {
    let _ = LIVE.try_with(|live| live.set(live.get() - size as isize));
}

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        remove(layout.size());
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        remove(layout.size());
        add(size);
        unsafe { System.realloc(block, layout, size) }
    }
}
