//! Adds up the `test result:` lines that libtest prints, and keeps what failing tests said.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

/// Lines kept of what a failing test has printed, the last ones.
const KEPT: usize = 60;

/// How many tests passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed.
    pub(crate) failed: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// What was read.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The sum of the results.
    pub(crate) tally: Tally,
    /// What each failing test printed, its name first.
    pub(crate) failures: Vec<String>,
}

/// Passes everything from `from` on to `to` as it comes, unfinished lines too, and reads the results in it.
pub(crate) fn tee(mut from: impl Read, mut to: impl Write) -> io::Result<Seen> {
    let mut scanner = Scanner::default();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&buffer[..length])?;
        to.flush()?;
        scanner.feed(&buffer[..length]);
    }
    Ok(scanner.finish())
}

/// Cuts a stream into lines.
#[derive(Default)]
struct Scanner {
    line: Vec<u8>,
    /// libtest tells what failing tests have printed.
    tells_failures: bool,
    /// Of the failing test that is told of; the first line names it.
    lines: VecDeque<String>,
    seen: Seen,
}

impl Scanner {
    fn feed(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn finish(mut self) -> Seen {
        self.end_line();
        self.end_failure();
        self.seen
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line).trim_end().to_owned();
        self.line.clear();
        if let Some(result) = parse(&line) {
            self.seen.tally += result;
        }
        if line == "failures:" {
            // Said twice: before what they have printed, and before a list of their names.
            self.end_failure();
            self.tells_failures = !self.tells_failures;
        } else if self.tells_failures {
            self.failure_line(line);
        }
    }

    fn failure_line(&mut self, line: String) {
        if line.starts_with("---- ") && line.ends_with(" stdout ----") {
            self.end_failure();
        } else if self.lines.len() == KEPT {
            // The first line, which names the test, stays.
            self.lines.remove(1);
        }
        self.lines.push_back(line);
    }

    fn end_failure(&mut self) {
        let text = Vec::from(std::mem::take(&mut self.lines)).join("\n");
        if !text.trim().is_empty() {
            self.seen.failures.push(text.trim().to_owned());
        }
    }
}

/// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn parse(line: &str) -> Option<Tally> {
    let (_verdict, counts) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
    let count = |name: &str| counts.split(';').find_map(|part| part.trim().strip_suffix(name)?.trim().parse().ok());
    Some(Tally { passed: count("passed")?, failed: count("failed")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &str = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
    const BAD: &str =
        "test result: FAILED. 12 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s\n";

    #[test]
    fn reads_result_lines() {
        assert_eq!(parse(OK), Some(Tally { passed: 3, failed: 0 }));
        assert_eq!(parse(BAD), Some(Tally { passed: 12, failed: 2 }));
    }

    #[test]
    fn ignores_other_lines() {
        for line in [
            "",
            "running 3 tests",
            "test a::b ... ok",
            "test result: ok",
            "test result: ok. many passed; 0 failed",
            "said: test result: ok. 3 passed; 0 failed;",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn adds_up_whatever_the_chunks() {
        let text = format!("running 3 tests\n\n{OK}garbage \u{fffd}\n{BAD}");
        for size in [1, 2, 7, 64, text.len()] {
            let mut scanner = Scanner::default();
            text.as_bytes().chunks(size).for_each(|chunk| scanner.feed(chunk));
            assert_eq!(scanner.finish().tally, Tally { passed: 15, failed: 2 }, "chunks of {size}");
        }
    }

    #[test]
    fn passes_everything_on() {
        let mut seen = Vec::new();
        let bytes = [OK.as_bytes(), b"\xff unfinished"].concat();
        let read = tee(bytes.as_slice(), &mut seen).expect("memory does not fail");
        assert_eq!(seen, bytes);
        assert_eq!(read.tally, Tally { passed: 3, failed: 0 });
    }

    fn failures(text: &str) -> Vec<String> {
        tee(text.as_bytes(), io::sink()).expect("memory does not fail").failures
    }

    #[test]
    fn keeps_what_failing_tests_said() {
        let text = "test good ... ok\ntest bad ... FAILED\n\nsuccesses:\n\n---- good stdout ----\nfine\n\n\nsuccesses:\n    \
                    good\n\nfailures:\n\n---- bad stdout ----\nError: second\n\n---- worse stdout ----\nError: third\n\n\n\
                    failures:\n    bad\n    worse\n\ntest result: FAILED. 1 passed; 2 failed; 0 ignored\n";
        assert_eq!(failures(text), ["---- bad stdout ----\nError: second", "---- worse stdout ----\nError: third"]);
    }

    #[test]
    fn keeps_the_name_and_the_last_lines() {
        let said: String = (0..200).map(|line| format!("line {line}\n")).collect();
        let told = failures(&format!("failures:\n---- wordy stdout ----\n{said}end"));
        let lines: Vec<_> = told[0].lines().collect();
        assert_eq!((lines.len(), lines[0], lines[KEPT - 1]), (KEPT, "---- wordy stdout ----", "end"));
    }
}
