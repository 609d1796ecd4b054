//! Parts of a snapshot: the tree under one entry, and the most important entries of many.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::snapshot::{Entry, Id, Snapshot};

impl Snapshot {
    /// Returns the entry with this number.
    pub fn entry(&self, id: Id) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.id == id)
    }

    /// Returns the tree under an entry, to be printed, or `None` if there is no such entry.
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

    /// Returns all trees, to be printed.
    pub fn trees(&self) -> Tree<'_> {
        let tops = (0..self.entries.len()).filter(|at| self.entries[*at].parent.is_none()).collect();
        Tree { snapshot: self, tops, breadth: BREADTH }
    }

    /// Reduces `entries` to an entry and its descendants, or to nothing if there is no such entry. The others are counted
    /// in `totals.unlisted`.
    pub fn below(mut self, id: Id) -> Snapshot {
        let kept = self.are_below(id);
        self.retain(&kept);
        self
    }

    /// Reduces `entries` to at most `most`: first work whose context has ended, then other work, then the rest, each with
    /// its ancestors. The others are counted in `totals.unlisted`.
    pub fn cut(mut self, most: usize) -> Snapshot {
        if self.entries.len() > most {
            let mut kept = vec![false; self.entries.len()];
            self.chosen(None, most).into_iter().for_each(|at| kept[at] = true);
            self.retain(&kept);
        }
        self
    }

    /// Returns for each entry whether it is under the given one, or is that one.
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

    /// Returns the indices of at most `most` entries, of all or of those under one. See [`cut`](Self::cut).
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
        // Deeper entries do not fit with their ancestors, so they are not tried.
        order.retain(|at| depths[*at] <= most || under.is_some());
        // The sort is stable, so the order is otherwise kept.
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

    /// Returns the index of each entry's parent, which is before the entry.
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

/// The default number of children that are printed of each entry.
const BREADTH: usize = 8;

/// Entries of a snapshot that are printed as a tree. Created by [`Snapshot::under`] and [`Snapshot::trees`].
#[derive(Clone, Debug)]
pub struct Tree<'a> {
    snapshot: &'a Snapshot,
    tops: Vec<usize>,
    breadth: usize,
}

impl Tree<'_> {
    /// Sets how many children of each entry are printed, 8 by default. The number of the others is printed as well.
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
        // An explicit stack, because the tree may be deep: the steps to be printed, and their indentation.
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
            // The indentation is limited.
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
