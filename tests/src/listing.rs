//! Runs cases one after the other, whatever becomes of each, and lists them on stdout: a line a case, written at once, so that
//! one run on a machine that is hard to come by shows all that fails there.
//!
//! `case NAME PRECISION ok`, or `case NAME PRECISION FAILED: why`.

use std::any::Any;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The cases that ran so far.
#[derive(Debug)]
pub struct Listing {
    precision: String,
    ran: usize,
    failed: Vec<String>,
}

impl Listing {
    /// Of cases in a precision.
    pub fn of(precision: &str) -> Listing {
        // The test runner may have left the name of the test without an end of line.
        say("");
        Listing { precision: precision.to_owned(), ran: 0, failed: Vec::new() }
    }

    /// Runs a case, and says what became of it; true when it held.
    pub fn run(&mut self, name: &str, case: impl FnOnce()) -> bool {
        self.ran += 1;
        let outcome = catch_unwind(AssertUnwindSafe(case));
        match &outcome {
            Ok(()) => say(&format!("case {name} {} ok", self.precision)),
            Err(panic) => {
                say(&format!("case {name} {} FAILED: {}", self.precision, words(panic.as_ref())));
                self.failed.push(name.to_owned());
            }
        }
        outcome.is_ok()
    }

    /// The end of the list.
    ///
    /// # Panics
    /// When a case did not hold, with the names of all that did not.
    #[track_caller]
    pub fn end(self) {
        let Listing { precision, ran, failed } = self;
        assert!(failed.is_empty(), "{} of {ran} cases failed in {precision}: {}", failed.len(), failed.join("; "));
        assert!(ran > 0, "there are cases in {precision}");
    }
}

/// What a panic said, on one line.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without words").lines().map(str::trim).collect::<Vec<_>>().join(" / ")
}

/// Not by `println!`, which the test runner may keep back.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_that_fails_ends_no_other() {
        let mut listing = Listing::of("F32");
        let mut ran = Vec::new();
        assert!(listing.run("one", || ran.push(1)));
        assert!(!listing.run("two", || panic!("wrong\n  by {}", 2)));
        assert!(listing.run("three", || ran.push(3)));
        assert_eq!(ran, [1, 3]);
        let end = catch_unwind(AssertUnwindSafe(|| listing.end())).expect_err("a case failed");
        assert_eq!(words(end.as_ref()), "1 of 3 cases failed in F32: two");
        let why = catch_unwind(|| panic!("wrong\n  by {}", 2)).expect_err("it panics");
        assert_eq!(words(why.as_ref()), "wrong / by 2");
    }
}
