//! Commands in words. What in them is replaced is in `placeholders`.

use super::{
    Command,
    raw::{Value, quoted},
};

/// A program and its arguments; `example` is what to write.
pub(super) fn command(value: &Value<'_>, example: &str) -> Option<Command> {
    let items = value.list(&format!("a list of words, {example}"))?;
    let Some(first) = items.first() else {
        return value.refuse("is empty; write a program and its arguments, or leave the key out");
    };
    let words: Vec<_> = items.iter().map(word).collect();
    let argv = words.into_iter().collect::<Option<Vec<_>>>()?;
    let program = first.word()?;
    // Without a slash it is looked up in PATH; with one, it would depend on the daemon's directory.
    if program.contains('/') && !program.starts_with('/') {
        return first.refuse(format!("{} is a relative path; write an absolute one", quoted(program)));
    }
    Some(Command { argv })
}

/// A text, possibly empty.
pub(super) fn word(value: &Value<'_>) -> Option<String> {
    let text = value.text()?;
    if text.contains('\0') {
        return value.refuse("contains a NUL character; leave it out");
    }
    Some(text.to_owned())
}
