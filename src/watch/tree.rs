//! Parts of a snapshot: what is under one entry, and the most telling of too many.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::snapshot::{Entry, Id, Snapshot};

impl Snapshot {
    /// The entry of this number.
    pub fn entry(&self, id: Id) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.id == id)
    }

    /// What is under an entry, to be printed as a tree; none if there is no such entry.
    ///
    /// ```
    /// use tokio_ctx::{Context, watch};
    ///
    /// let watch = watch::install();
    /// let import = Context::background().with_cancel().named("import");
    /// let snapshot = watch.snapshot();
    /// let entry = snapshot.entries.iter().find(|entry| entry.name.as_deref() == Some("import")).unwrap();
    /// println!("{}", snapshot.under(entry.id).unwrap());
    /// # drop(import);
    /// ```
    pub fn under(&self, id: Id) -> Option<Tree<'_>> {
        let top = self.entries.iter().position(|entry| entry.id == id)?;
        Some(Tree { snapshot: self, tops: vec![top], breadth: BREADTH })
    }

    /// All of it, to be printed as trees.
    pub fn trees(&self) -> Tree<'_> {
        let tops = (0..self.entries.len()).filter(|at| self.entries[*at].parent.is_none()).collect();
        Tree { snapshot: self, tops, breadth: BREADTH }
    }

    /// The same with only what is under an entry, itself first, in `entries`; none are left if there is no such entry.
    /// Those left out are counted in `totals.unlisted`.
    pub fn below(mut self, id: Id) -> Snapshot {
        let mut kept = HashSet::from([id]);
        self.retain(|entry| {
            let is_below = entry.id == id || entry.parent.is_some_and(|parent| kept.contains(&parent));
            if is_below {
                kept.insert(entry.id);
            }
            is_below
        });
        self
    }

    /// The same with so many `entries` at most: first what has ended and is still here, then other work, then the rest,
    /// each with those above it. Those left out are counted in `totals.unlisted`.
    pub fn cut(mut self, most: usize) -> Snapshot {
        if self.entries.len() <= most {
            return self;
        }
        let places: HashMap<Id, usize> =
            self.entries.iter().enumerate().map(|(at, entry)| (entry.id, at)).collect();
        let mut order: Vec<usize> = (0..self.entries.len()).collect();
        // Stable: otherwise as they come.
        order.sort_by_key(|at| {
            let entry = &self.entries[*at];
            (!(entry.is_work && entry.end.is_some()), !entry.is_work)
        });
        let (mut kept, mut count) = (vec![false; self.entries.len()], 0);
        for at in order {
            let above = std::iter::successors(Some(at), |at| {
                self.entries[*at].parent.and_then(|parent| places.get(&parent).copied())
            });
            let path: Vec<usize> = above.take_while(|at| !kept[*at]).collect();
            if count + path.len() <= most {
                count += path.len();
                path.into_iter().for_each(|at| kept[at] = true);
            }
            if count == most {
                break;
            }
        }
        let mut kept = kept.into_iter();
        self.retain(|_| kept.next().unwrap_or(false));
        self
    }

    fn retain(&mut self, keep: impl FnMut(&Entry) -> bool) {
        let before = self.entries.len();
        self.entries.retain(keep);
        self.totals.unlisted += before - self.entries.len();
    }
}

/// So many entries are printed below one.
const BREADTH: usize = 8;

/// Entries of a snapshot, as a tree. Made by [`Snapshot::under`] and [`Snapshot::trees`].
#[derive(Clone, Debug)]
pub struct Tree<'a> {
    snapshot: &'a Snapshot,
    tops: Vec<usize>,
    breadth: usize,
}

impl Tree<'_> {
    /// Prints so many entries below one, and how many more there are: 8 unless told otherwise.
    pub fn breadth(mut self, breadth: usize) -> Self {
        self.breadth = breadth;
        self
    }
}

impl fmt::Display for Tree<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = &self.snapshot.entries;
        let mut children: HashMap<Id, Vec<usize>> = HashMap::new();
        for (at, entry) in entries.iter().enumerate() {
            if let Some(parent) = entry.parent {
                children.entry(parent).or_default().push(at);
            }
        }
        // A stack of its own, as a tree may be deep: what is to be printed next, and how far it is indented.
        let mut next: Vec<(usize, Step)> = Vec::new();
        let push = |next: &mut Vec<(usize, Step)>, depth: usize, below: &[usize], all: usize| {
            let shown = below.len().min(self.breadth);
            if all > shown {
                next.push((depth, Step::More(all - shown)));
            }
            next.extend(below[..shown].iter().rev().map(|at| (depth, Step::Entry(*at))));
        };
        push(&mut next, 0, &self.tops, self.tops.len());
        let mut is_first = true;
        while let Some((depth, step)) = next.pop() {
            if !std::mem::take(&mut is_first) {
                f.write_str("\n")?;
            }
            // What is deeper is no longer indented.
            write!(f, "{:1$}", "", 2 * depth.min(20))?;
            match step {
                Step::More(count) => write!(f, "… and {} more", super::text::thousands(count))?,
                Step::Entry(at) => {
                    let entry = &entries[at];
                    super::text::fmt_entry(entry, 2 * depth.min(20), f)?;
                    let below = children.get(&entry.id).map_or(&[][..], Vec::as_slice);
                    push(&mut next, depth + 1, below, entry.children.max(below.len()));
                }
            }
        }
        Ok(())
    }
}

enum Step {
    Entry(usize),
    More(usize),
}
