//! Names of what is registered, and probes. A name is formatted only when it is shown.

use std::any::Any;
use std::fmt;

/// A name. Formatting it runs no foreign code.
pub(crate) type Name = Box<dyn fmt::Display + Send + Sync>;

/// What the module that registers a record knows about it, for a module above.
pub(crate) type Probe = Box<dyn Any + Send + Sync>;

/// The name of a record, if it has one. It is stored in the record itself, so that it needs no allocation of its own.
pub(crate) trait Label: Send + Sync {
    /// Returns the text to show, before it is truncated.
    #[cfg_attr(not(feature = "watch"), allow(dead_code, reason = "only a watch reads it"))]
    fn text(&self) -> Option<&dyn fmt::Display>;
}

impl Label for Option<Name> {
    fn text(&self) -> Option<&dyn fmt::Display> {
        self.as_ref().map(|name| name as &dyn fmt::Display)
    }
}

/// Returns the part of a name that is shown.
#[cfg(feature = "watch")]
pub(crate) fn brief(name: &dyn fmt::Display) -> String {
    use fmt::Write as _;

    const LONGEST: usize = 120;
    let mut brief = Brief::new(LONGEST);
    let _cut = write!(brief, "{name}");
    brief.text()
}

/// Accepts a number of characters, without control characters, and discards the rest.
pub(crate) struct Brief {
    text: String,
    room: usize,
    is_cut: bool,
}

impl Brief {
    pub(crate) fn new(room: usize) -> Brief {
        Brief { text: String::new(), room, is_cut: false }
    }

    pub(crate) fn text(mut self) -> String {
        if self.is_cut {
            self.text.push('…');
        }
        self.text
    }
}

impl fmt::Write for Brief {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            if self.room == 0 {
                self.is_cut = true;
                // Stops the formatting: the rest is not needed.
                return Err(fmt::Error);
            }
            self.room -= 1;
            self.text.push(if is_plain(char) { char } else { ' ' });
        }
        Ok(())
    }
}

/// Returns false for control characters, for invisible ones, and for those that change the direction or the lines of
/// the text around them.
fn is_plain(char: char) -> bool {
    let is_invisible = matches!(
        char,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    );
    !char.is_control() && !is_invisible
}
