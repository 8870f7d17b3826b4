//! A terminal to draw on that never fails: when it is gone, nothing is drawn.
//!
//! indicatif panics where its terminal reports an error in the wrong place, so none is
//! reported.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use indicatif::TermLike;

/// Columns and rows.
type Size = Arc<dyn Fn() -> (u16, u16) + Send + Sync>;

/// Cheap to clone; all clones draw on the same terminal.
#[derive(Clone)]
pub(super) struct Screen {
    out: Arc<Mutex<Box<dyn Write + Send>>>,
    size: Size,
}

impl Screen {
    /// Standard output.
    pub(super) fn stdout() -> Self {
        let term = console::Term::stdout();
        let size = move || {
            let (rows, columns) = term.size();
            (columns, rows)
        };
        Self::new(Box::new(io::stdout()), Arc::new(size))
    }

    pub(super) fn new(out: Box<dyn Write + Send>, size: Size) -> Self {
        Self { out: Arc::new(Mutex::new(out)), size }
    }

    /// Writes text as it is.
    pub(super) fn put(&self, text: &str) {
        let _ = self.lock().write_all(text.as_bytes());
    }

    pub(super) fn columns(&self) -> usize {
        usize::from((self.size)().0).max(20)
    }

    fn lock(&self) -> MutexGuard<'_, Box<dyn Write + Send>> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moved(&self, count: usize, direction: char) -> io::Result<()> {
        if count > 0 {
            self.put(&format!("\x1b[{count}{direction}"));
        }
        Ok(())
    }
}

impl fmt::Debug for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Screen")
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        (self.size)().0
    }

    fn height(&self) -> u16 {
        (self.size)().1
    }

    fn move_cursor_up(&self, count: usize) -> io::Result<()> {
        self.moved(count, 'A')
    }

    fn move_cursor_down(&self, count: usize) -> io::Result<()> {
        self.moved(count, 'B')
    }

    fn move_cursor_right(&self, count: usize) -> io::Result<()> {
        self.moved(count, 'C')
    }

    fn move_cursor_left(&self, count: usize) -> io::Result<()> {
        self.moved(count, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.put(text);
        self.put("\n");
        Ok(())
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.put(text);
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        self.put("\r\x1b[2K");
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let _ = self.lock().flush();
        Ok(())
    }
}
