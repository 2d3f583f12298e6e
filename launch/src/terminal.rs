//! Standard error that may go away: the terminal is closed, the reader of the pipe is gone, the disk of a log is full. A run outlives
//! that, so nothing that is written there can fail. Bars are drawn there too, and would end the program with their terminal.

use std::io::{self, Write};

use console::Term;
use indicatif::TermLike;

/// Writes messages, or what is left of them.
#[derive(Debug)]
pub struct Messages;

impl Write for Messages {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Nobody is left to tell.
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where bars are drawn.
#[derive(Debug)]
pub struct Bars(Term);

impl Bars {
    /// Standard error, if it is a terminal.
    pub fn on_terminal() -> Option<Self> {
        Some(Term::buffered_stderr()).filter(Term::is_term).map(Bars)
    }
}

/// Columns of the terminal; 80 where it does not say.
pub fn width() -> usize {
    usize::from(Term::stderr().size().1)
}

/// Where the terminal is gone, nobody is left to see that it fails.
fn drawn(_result: io::Result<()>) -> io::Result<()> {
    Ok(())
}

impl TermLike for Bars {
    fn width(&self) -> u16 {
        self.0.size().1
    }

    fn height(&self) -> u16 {
        self.0.size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        drawn(self.0.move_cursor_up(n))
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        drawn(self.0.move_cursor_down(n))
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        drawn(self.0.move_cursor_right(n))
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        drawn(self.0.move_cursor_left(n))
    }

    fn write_line(&self, line: &str) -> io::Result<()> {
        drawn(self.0.write_line(line))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        drawn(self.0.write_str(text))
    }

    fn clear_line(&self) -> io::Result<()> {
        drawn(self.0.clear_line())
    }

    fn flush(&self) -> io::Result<()> {
        drawn(self.0.flush())
    }
}
