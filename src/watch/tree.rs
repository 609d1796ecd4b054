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
        let kept = self.are_below(id);
        self.retain(&kept);
        self
    }

    /// The same with so many `entries` at most: first what has ended and is still here, then other work, then the rest,
    /// each with those above it. Those left out are counted in `totals.unlisted`.
    pub fn cut(mut self, most: usize) -> Snapshot {
        if self.entries.len() > most {
            let mut kept = vec![false; self.entries.len()];
            self.chosen(None, most).into_iter().for_each(|at| kept[at] = true);
            self.retain(&kept);
        }
        self
    }

    /// Which entries are under one, or are that.
    fn are_below(&self, id: Id) -> Vec<bool> {
        let mut ids = HashSet::from([id]);
        let is_below = |entry: &Entry| {
            let is_below = entry.id == id || entry.parent.is_some_and(|parent| ids.contains(&parent));
            if is_below {
                ids.insert(entry.id);
            }
            is_below
        };
        self.entries.iter().map(is_below).collect()
    }

    /// The places of so many entries at most, of all or of those under one: see [`cut`](Self::cut).
    pub(super) fn chosen(&self, under: Option<Id>, most: usize) -> Vec<usize> {
        if most == 0 {
            return Vec::new();
        }
        // Entries outside of the subtree count as taken, so that they are not chosen.
        let mut taken: Vec<bool> = match under {
            Some(id) => self.are_below(id).into_iter().map(|is_below| !is_below).collect(),
            None => vec![false; self.entries.len()],
        };
        let mut order: Vec<usize> = (0..self.entries.len()).filter(|at| !taken[*at]).collect();
        if order.len() <= most {
            return order;
        }
        let parents = self.parents();
        let mut depths: Vec<usize> = Vec::with_capacity(parents.len());
        for parent in &parents {
            depths.push(parent.map_or(1, |parent| depths[parent] + 1));
        }
        // What is deeper does not fit, and is not walked up from again and again.
        order.retain(|at| depths[*at] <= most || under.is_some());
        // Stable: otherwise as they come.
        order.sort_by_key(|at| {
            let entry = &self.entries[*at];
            (!(entry.is_work && entry.end.is_some()), !entry.is_work)
        });
        let mut chosen = Vec::new();
        for at in order {
            let above = std::iter::successors(Some(at), |at| parents[*at]);
            let room = most - chosen.len();
            let path: Vec<usize> = above.take_while(|at| !taken[*at]).take(room + 1).collect();
            if path.len() <= room {
                path.iter().for_each(|at| taken[*at] = true);
                chosen.extend(path);
            }
            if chosen.len() == most {
                break;
            }
        }
        chosen
    }

    /// Where the parent of each entry is: before it.
    pub(super) fn parents(&self) -> Vec<Option<usize>> {
        let mut places: HashMap<Id, usize> = HashMap::with_capacity(self.entries.len());
        let mut parents = Vec::with_capacity(self.entries.len());
        for (at, entry) in self.entries.iter().enumerate() {
            parents.push(entry.parent.and_then(|parent| places.get(&parent).copied()));
            places.insert(entry.id, at);
        }
        parents
    }

    fn retain(&mut self, kept: &[bool]) {
        let before = self.entries.len();
        let mut kept = kept.iter();
        self.entries.retain(|_| kept.next().is_some_and(|kept| *kept));
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
    /// Prints so many entries below one, and how many more there are: 8 by default.
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
