//! Reads the standard output and error of a child concurrently, and keeps what was read if reading fails.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::process::{ChildStderr, ChildStdout};

/// The size of a single read.
const CHUNK: usize = 8 * 1024;

pub(super) struct Capture {
    stdout: Pipe<ChildStdout>,
    stderr: Pipe<ChildStderr>,
}

struct Pipe<R> {
    // `None` if it is not piped, was read to the end, or failed.
    source: Option<R>,
    bytes: Vec<u8>,
    failure: Option<io::Error>,
}

impl Capture {
    pub(super) fn new(stdout: Option<ChildStdout>, stderr: Option<ChildStderr>) -> Capture {
        Capture { stdout: Pipe::new(stdout), stderr: Pipe::new(stderr) }
    }

    /// Reads until the end of both pipes. Can be polled again after it is ready.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let both = (self.stdout.poll(cx), self.stderr.poll(cx));
        if both == (Poll::Ready(()), Poll::Ready(())) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Returns what was read from each pipe, and the error, if reading failed.
    pub(super) fn finish(self) -> (Vec<u8>, Vec<u8>, Option<io::Error>) {
        (self.stdout.bytes, self.stderr.bytes, self.stdout.failure.or(self.stderr.failure))
    }
}

impl<R: AsyncRead + Unpin> Pipe<R> {
    fn new(source: Option<R>) -> Pipe<R> {
        Pipe { source, bytes: Vec::new(), failure: None }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(source) = &mut self.source {
            let mut chunk = [0; CHUNK];
            let mut chunk = ReadBuf::new(&mut chunk);
            let read = ready!(Pin::new(source).poll_read(cx, &mut chunk));
            self.bytes.extend_from_slice(chunk.filled());
            if read.is_err() || chunk.filled().is_empty() {
                self.source = None;
            }
            self.failure = read.err();
        }
        Poll::Ready(())
    }
}
