//! What is wrong with a configuration: every problem found, each with its line, key and reason.

use std::{
    cell::RefCell,
    fmt, io,
    path::{Path, PathBuf},
};

use crate::trust::Unsafe;

/// Why there is no [`Config`](super::Config).
///
/// Shows one line a problem: `deployer.toml:7: service.web.workers: reason; what to write`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another user could change the file, which the daemon would act upon as root.
    #[error("the configuration is not used: {0}")]
    Unsafe(Unsafe),
    /// The file was read and is wrong.
    #[error("{}", Lines(path, problems))]
    Wrong {
        /// The file.
        path: PathBuf,
        /// All that is wrong with it, by line; at least one.
        problems: Vec<Problem>,
    },
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line of the value, from 1; of its table if the key is missing.
    pub line: usize,
    /// The dotted key; empty where the file is not TOML.
    pub key: String,
    /// What is wrong and what to write instead, in one line.
    pub reason: String,
}

impl ConfigError {
    /// The file at `path` could not be read.
    #[must_use]
    pub fn unreadable(path: &Path, source: io::Error) -> Self {
        Self::Unreadable { path: path.to_path_buf(), source }
    }

    /// What is wrong with the file; empty if it could not be read at all.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Unreadable { .. } | Self::Unsafe(_) => &[],
            Self::Wrong { problems, .. } => problems,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.line)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.reason)
    }
}

struct Lines<'a>(&'a Path, &'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.1.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{}:{problem}", self.0.display())?;
        }
        Ok(())
    }
}

/// Collects problems, so that one run of the checks names them all.
#[derive(Debug)]
pub(super) struct Report<'a> {
    text: &'a str,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Report<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, problems: RefCell::default() }
    }

    /// The line, from 1, of a byte of the text.
    pub(super) fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().get(..at).unwrap_or(self.text.as_bytes());
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    pub(super) fn add(&self, at: usize, key: &str, reason: &str) {
        let problem = Problem { line: self.line(at), key: one_line(key), reason: one_line(reason) };
        self.problems.borrow_mut().push(problem);
    }

    /// Whether something has been said of this key already, or of a part of it.
    pub(super) fn has(&self, at: usize, key: &str) -> bool {
        let line = self.line(at);
        let is_of = |problem: &Problem| problem.line == line && problem.key.starts_with(key);
        self.problems.borrow().iter().any(is_of)
    }

    /// Adds what the TOML parser says. One mistake makes it stumble several times, so only the first of a line
    /// is kept.
    pub(super) fn add_syntax(&self, error: &toml::de::Error) {
        let at = error.span().map_or(0, |span| span.start);
        let line = self.line(at);
        if self.problems.borrow().iter().all(|problem| problem.line != line) {
            self.add(at, "", &format!("not TOML: {}", error.message()));
        }
    }

    /// The result of all checks. `checked` is `None` only where a problem was added.
    pub(super) fn finish<T>(self, path: &Path, checked: Option<T>) -> Result<T, ConfigError> {
        let mut problems = self.problems.into_inner();
        match checked {
            Some(checked) if problems.is_empty() => Ok(checked),
            _ => {
                problems.sort_by_key(|problem| problem.line);
                Err(ConfigError::Wrong { path: path.to_path_buf(), problems })
            }
        }
    }
}

/// Keys and values from the file may hold line breaks and escape sequences; a log must not.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() {
            line.extend(char.escape_debug());
        } else {
            line.push(char);
        }
    }
    line
}
