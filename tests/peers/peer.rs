//! A program in another language, which prints a line for each of its results.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::common::HANG;

/// A process, which is killed when dropped.
pub struct Peer {
    lines: Lines<BufReader<ChildStdout>>,
    pub stdin: ChildStdin,
    _child: Child,
}

impl Peer {
    pub fn spawn(command: &mut Command) -> Peer {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Peer { lines, stdin: child.stdin.take().unwrap(), _child: child }
    }

    /// Reads the words of the next line of its output.
    pub async fn read_words(&mut self) -> Vec<String> {
        let line = tokio::time::timeout(HANG, self.lines.next_line()).await.unwrap().unwrap();
        line.expect("another line of output").split(' ').map(Into::into).collect()
    }

    /// Reads how a call ended: code, seconds, details.
    pub async fn outcome(&mut self) -> (String, f64, String) {
        let words = self.read_words().await;
        (words[0].clone(), words[1].parse().unwrap(), words[2..].join(" "))
    }
}
