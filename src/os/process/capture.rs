//! Reads a child's output and error at the same time, and keeps what was read, whatever comes of it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::process::{ChildStderr, ChildStdout};

/// How much is read at once.
const CHUNK: usize = 8 * 1024;

pub(super) struct Capture {
    stdout: Pipe<ChildStdout>,
    stderr: Pipe<ChildStderr>,
}

struct Pipe<R> {
    // None: it was not piped, has been read to its end, or failed.
    source: Option<R>,
    bytes: Vec<u8>,
    failure: Option<io::Error>,
}

impl Capture {
    pub(super) fn new(stdout: Option<ChildStdout>, stderr: Option<ChildStderr>) -> Capture {
        Capture { stdout: Pipe::new(stdout), stderr: Pipe::new(stderr) }
    }

    /// Reads on; ready, as often as it is asked, once there is nothing more to be had.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let both = (self.stdout.poll(cx), self.stderr.poll(cx));
        if both == (Poll::Ready(()), Poll::Ready(())) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// What was read of either, and what kept it from reading more.
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
