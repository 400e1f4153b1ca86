//! The terminal that the live view is drawn on, each time in one write. The cursor is left behind the last word:
//! indicatif leaves it at the right edge, from where the `^C` that a terminal echoes would move the screen.

use std::{
    fmt,
    io::{self, Write},
    mem,
    sync::{Mutex, PoisonError},
};

use indicatif::TermLike;
use rustix::termios::tcgetwinsize;

/// Takes away what is right of the cursor.
const CLEAR_TO_THE_EDGE: &[u8] = b"\x1b[K";
/// Where the size is not known.
const USUAL: (u16, u16) = (80, 24);

/// Standard output, or what stands for it in a test.
pub(super) struct Terminal<W> {
    state: Mutex<State<W>>,
}

struct State<W> {
    to: W,
    /// What is drawn next.
    drawn: Vec<u8>,
}

impl<W> fmt::Debug for Terminal<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminal").finish_non_exhaustive()
    }
}

impl<W: Write> Terminal<W> {
    pub(super) fn new(to: W) -> Self {
        Self { state: Mutex::new(State { to, drawn: Vec::new() }) }
    }

    fn draw(&self, text: fmt::Arguments<'_>) -> io::Result<()> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).drawn.write_fmt(text)
    }

    /// Moves, unless there is nowhere to go: a terminal takes 0 for 1.
    fn go(&self, by: usize, whither: char) -> io::Result<()> {
        if by == 0 { Ok(()) } else { self.draw(format_args!("\x1b[{by}{whither}")) }
    }
}

/// Columns and rows, both at least 1.
fn size() -> (u16, u16) {
    match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        _ => USUAL,
    }
}

impl<W: Write + Send> TermLike for Terminal<W> {
    fn width(&self) -> u16 {
        size().0
    }

    fn height(&self) -> u16 {
        size().1
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.go(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.go(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.go(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.go(n, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.draw(format_args!("{text}\n"))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.draw(format_args!("{text}"))
    }

    fn clear_line(&self) -> io::Result<()> {
        self.draw(format_args!("\r\x1b[2K"))
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Gone even if the write fails: it is not to be drawn twice.
        let mut drawn = mem::take(&mut state.drawn);
        // The last line is always a bar's, so that nothing is written behind it but an echo.
        if drawn.ends_with(b" ") {
            drawn.truncate(drawn.trim_ascii_end().len());
            drawn.extend_from_slice(CLEAR_TO_THE_EDGE);
        }
        state.to.write_all(&drawn)?;
        state.to.flush()
    }
}
