//! Words as shells and iptables-save write them.

/// Splits a line of `iptables-save`: blanks between words, double quotes around some, a backslash before a quote or a
/// backslash in these.
pub(super) fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut quoted, mut begun) = (false, false);
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' if quoted => word.extend(chars.next()),
            '"' => {
                quoted = !quoted;
                begun = true;
            }
            char if char.is_whitespace() && !quoted => {
                if begun || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            char => word.push(char),
        }
    }
    if begun || !word.is_empty() {
        words.push(word);
    }
    words
}

/// A command for a shell. What a comment in a rule says must not be run by whoever pastes the command that deletes it.
pub(super) fn shell<S: AsRef<str>>(words: impl IntoIterator<Item = S>) -> String {
    words.into_iter().map(|word| quote(word.as_ref())).collect::<Vec<_>>().join(" ")
}

fn quote(word: &str) -> String {
    // `!` alone is a word that no shell expands.
    let plain = |char: char| char.is_ascii_alphanumeric() || "-_./:,+=@%^".contains(char);
    if word == "!" || (!word.is_empty() && word.chars().all(plain)) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}
