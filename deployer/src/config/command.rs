//! Commands in words, and what in them is replaced.

use super::{
    Command,
    raw::{Value, quoted},
};

/// A program and its arguments, with these placeholders; `example` is what to write.
pub(super) fn command(value: &Value<'_>, example: &str, placeholders: &[&str]) -> Option<Command> {
    let items = value.list(&format!("a list of words, {example}"))?;
    let Some(first) = items.first() else {
        return value.refuse("is empty; write a program and its arguments, or leave the key out");
    };
    let words: Vec<_> = items.iter().map(|item| word(item, placeholders)).collect();
    let argv = words.into_iter().collect::<Option<Vec<_>>>()?;
    let program = first.word()?;
    // Without a slash it is looked up in PATH; with one, it would depend on the daemon's directory.
    if program.contains('/') && !program.starts_with('/') {
        return first.refuse(format!("{} is a relative path; write an absolute one", quoted(program)));
    }
    Some(Command { argv })
}

/// A text, possibly empty, with these placeholders.
pub(super) fn word(value: &Value<'_>, placeholders: &[&str]) -> Option<String> {
    let text = value.text()?;
    if text.contains('\0') {
        return value.refuse("contains a NUL character; leave it out");
    }
    known_placeholders(value, text, placeholders)?;
    Some(text.to_owned())
}

/// Refuses `{word}` unless it is replaced by something. Other braces are left alone: `{"a": 1}`, `{}`.
pub(super) fn known_placeholders(value: &Value<'_>, text: &str, known: &[&str]) -> Option<()> {
    let is_word = |part: &str| {
        part.starts_with(|char: char| char.is_ascii_alphabetic() || char == '_')
            && part.chars().all(|char| char.is_ascii_alphanumeric() || matches!(char, '_' | '-'))
    };
    let parts = text.split('{').skip(1).filter_map(|part| part.split_once('}'));
    for (name, _) in parts {
        if is_word(name) && !known.contains(&name) {
            let known: Vec<_> = known.iter().map(|name| format!("{{{name}}}")).collect();
            return value.refuse(format!("{{{name}}} is replaced by nothing; write {}", known.join(" or ")));
        }
    }
    Some(())
}
