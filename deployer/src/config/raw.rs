//! The file as written: tables whose keys are taken one by one, values that know their line and dotted key.
//!
//! Read by hand rather than by derived `Deserialize`: that stops at the first wrong type or unknown key, whereas
//! here a check that fails leaves a problem in the [`Report`] and the next one goes on.

use std::{collections::HashSet, ops::RangeInclusive, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::error::Report;

/// A value, where it stands and what it is called.
#[derive(Debug, Clone)]
pub(super) struct Value<'a> {
    at: usize,
    key: String,
    value: &'a DeValue<'a>,
    report: &'a Report<'a>,
}

/// A table. What was not taken from it by [`Table::done`] is unknown.
#[derive(Debug)]
pub(super) struct Table<'a> {
    at: usize,
    key: String,
    /// `None`: the table is not there, all keys have their defaults.
    entries: Option<&'a DeTable<'a>>,
    report: &'a Report<'a>,
    known: Vec<&'static str>,
}

impl<'a> Table<'a> {
    /// The file.
    pub(super) fn root(entries: &'a DeTable<'a>, report: &'a Report<'a>) -> Self {
        Self { at: 0, key: String::new(), entries: Some(entries), report, known: Vec::new() }
    }

    /// Whether a key is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.is_some_and(|entries| entries.iter().any(|(key, _)| key.get_ref() == name))
    }

    /// The value of a key, if it is there.
    pub(super) fn take(&mut self, name: &'static str) -> Option<Value<'a>> {
        self.known.push(name);
        let (_, value) = self.entries?.iter().find(|(key, _)| key.get_ref() == name)?;
        Some(self.value(name, value))
    }

    /// A key that may be missing.
    pub(super) fn maybe<T>(
        &mut self,
        name: &'static str,
        check: impl FnOnce(&Value<'a>) -> Option<T>,
    ) -> Option<Option<T>> {
        self.take(name).map_or(Some(None), |value| check(&value).map(Some))
    }

    /// A key that has a default.
    pub(super) fn or<T>(
        &mut self,
        name: &'static str,
        default: T,
        check: impl FnOnce(&Value<'a>) -> Option<T>,
    ) -> Option<T> {
        self.take(name).map_or(Some(default), |value| check(&value))
    }

    /// A key that must be there; `example` is what to write if it is not.
    pub(super) fn need<T>(
        &mut self,
        name: &'static str,
        example: &str,
        check: impl FnOnce(&Value<'a>) -> Option<T>,
    ) -> Option<T> {
        if let Some(value) = self.take(name) {
            return check(&value);
        }
        self.report.add(self.at, &join(&self.key, name), &format!("is missing; write {example}"));
        None
    }

    /// A table that may be missing: all its keys have defaults.
    pub(super) fn section(&mut self, name: &'static str) -> Option<Table<'a>> {
        match self.take(name) {
            Some(value) => value.table(),
            None => Some(Table {
                at: self.at,
                key: join(&self.key, name),
                entries: None,
                report: self.report,
                known: Vec::new(),
            }),
        }
    }

    /// All entries in the order of the file, for tables whose keys are names.
    pub(super) fn entries(&self) -> Vec<(&'a str, Value<'a>)> {
        let mut entries: Vec<_> = self.entries.into_iter().flatten().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        entries.into_iter().map(|(key, value)| (&**key.get_ref(), self.value(key.get_ref(), value))).collect()
    }

    /// Calls `each` with every value at or below the table, and the names of its keys, `[]` for an item of a list.
    pub(super) fn walk(&self, each: &mut dyn FnMut(&[&'a str], &Value<'a>)) {
        self.entries().into_iter().for_each(|(name, value)| value.walk(&mut vec![name], each));
    }

    /// Reports the keys that nobody took.
    pub(super) fn done(&self) {
        let known: HashSet<&str> = self.known.iter().copied().collect();
        for key in self.entries.into_iter().flatten().map(|(key, _)| key) {
            if !known.contains(&**key.get_ref()) {
                let reason = format!("is unknown; write one of: {}", self.known.join(", "));
                self.report.add(key.span().start, &join(&self.key, key.get_ref()), &reason);
            }
        }
    }

    /// Reports that the table as a whole is wrong.
    pub(super) fn refuse<T>(&self, reason: &str) -> Option<T> {
        self.report.add(self.at, &self.key, reason);
        None
    }

    fn value(&self, name: &str, value: &'a Spanned<DeValue<'a>>) -> Value<'a> {
        Value { at: value.span().start, key: join(&self.key, name), value: value.get_ref(), report: self.report }
    }
}

impl<'a> Value<'a> {
    /// Where in the file it stands; orders values.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// How another problem refers to it.
    pub(super) fn place(&self) -> String {
        format!("{} (line {})", self.key, self.report.line(self.at))
    }

    /// Reports that it is wrong.
    pub(super) fn refuse<T>(&self, reason: impl AsRef<str>) -> Option<T> {
        self.report.add(self.at, &self.key, reason.as_ref());
        None
    }

    /// The same, unless something has been said of this value already.
    pub(super) fn refuse_once(&self, reason: &str) {
        if !self.report.has(self.at, &self.key) {
            self.report.add(self.at, &self.key, reason);
        }
    }

    /// The text, if it is one.
    pub(super) fn if_text(&self) -> Option<&'a str> {
        self.value.as_str()
    }

    fn walk(&self, path: &mut Vec<&'a str>, each: &mut dyn FnMut(&[&'a str], &Value<'a>)) {
        each(path, self);
        if let Some(entries) = self.value.as_table() {
            let table = Table {
                at: self.at,
                key: self.key.clone(),
                entries: Some(entries),
                report: self.report,
                known: Vec::new(),
            };
            for (name, value) in table.entries() {
                path.push(name);
                value.walk(path, each);
                path.pop();
            }
        }
        if self.value.is_array() {
            path.push("[]");
            self.list("a list").into_iter().flatten().for_each(|item| item.walk(path, each));
            path.pop();
        }
    }

    pub(super) fn is_integer(&self) -> bool {
        self.value.is_integer()
    }

    pub(super) fn is_text(&self) -> bool {
        self.value.is_str()
    }

    pub(super) fn is_table(&self) -> bool {
        self.value.is_table()
    }

    pub(super) fn is_list(&self) -> bool {
        self.value.is_array()
    }

    pub(super) fn table(&self) -> Option<Table<'a>> {
        let entries = self.value.as_table();
        if entries.is_none() {
            return self.wrong_type("a table");
        }
        Some(Table { at: self.at, key: self.key.clone(), entries, report: self.report, known: Vec::new() })
    }

    /// `what`: how the message calls the list.
    pub(super) fn list(&self, what: &str) -> Option<Vec<Value<'a>>> {
        let Some(items) = self.value.as_array() else {
            return self.wrong_type(what);
        };
        let item = |(index, item): (usize, &'a Spanned<DeValue<'a>>)| Value {
            at: item.span().start,
            key: format!("{}[{index}]", self.key),
            value: item.get_ref(),
            report: self.report,
        };
        Some(items.iter().enumerate().map(item).collect())
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        let text = self.value.as_str();
        if text.is_none() { self.wrong_type("a string") } else { text }
    }

    /// A text that reaches the system as a C string, and means nothing if empty.
    pub(super) fn word(&self) -> Option<&'a str> {
        let text = self.text()?;
        if text.is_empty() {
            return self.refuse("is empty; write a value or leave the key out");
        }
        if text.contains('\0') {
            return self.refuse("contains a NUL character; leave it out");
        }
        Some(text)
    }

    pub(super) fn number(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let wanted = format!("a whole number from {} to {}", range.start(), range.end());
        let Some(number) = self.value.as_integer() else {
            return self.wrong_type(&wanted);
        };
        match u32::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) if range.contains(&number) => Some(number),
            _ => self.refuse(format!("{number} is out of range; write {wanted}")),
        }
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        let found = self.value.as_bool();
        if found.is_none() { self.wrong_type("true or false") } else { found }
    }

    /// A number of bytes: an integer, or a text with a unit, `"10MB"`.
    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Option<u64> {
        const WANTED: &str = "a number of bytes, 10000000, or \"10MB\" (kB, MB, GB)";
        let size = if let Some(number) = self.value.as_integer() {
            u64::from_str_radix(number.as_str(), number.radix()).unwrap_or(u64::MAX)
        } else {
            let Some(text) = self.value.as_str() else { return self.wrong_type(WANTED) };
            match size(text) {
                Some(size) => size,
                None => return self.refuse(format!("{} is no size; write {WANTED}", quoted(text))),
            }
        };
        if range.contains(&size) {
            return Some(size);
        }
        self.refuse(format!("is out of range; write {} to {} bytes", range.start(), range.end()))
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
            return Some(*choice);
        }
        let names: Vec<_> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        self.refuse(format!("{} is unknown; write {}", quoted(text), names.join(" or ")))
    }

    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        if self.is_integer() {
            return self.refuse("has no unit; write a string such as \"250ms\", \"10s\", \"5m\" or \"2h\"");
        }
        let text = self.text()?;
        let Some(duration) = duration(text) else {
            return self
                .refuse(format!("{} is no duration; write a whole number and ms, s, m or h: \"10s\"", quoted(text)));
        };
        if range.contains(&duration) {
            return Some(duration);
        }
        let side = if duration < *range.start() { "short" } else { "long" };
        self.refuse(format!("{text} is too {side}; write {} to {}", shown(*range.start()), shown(*range.end())))
    }

    pub(super) fn wrong_type<T>(&self, wanted: &str) -> Option<T> {
        let found = match self.value.type_str() {
            "integer" => "an integer",
            "array" => "a list",
            "table" => "a table",
            "string" => "a string",
            "boolean" => "a boolean",
            "float" => "a float",
            _ => "a date",
        };
        self.refuse(format!("is {found}; write {wanted}"))
    }
}

/// A text from the file as an error shows it: quoted, in one line, not endless.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN: usize = 80;
    let start: String = text.chars().take(SHOWN).collect();
    let more = if start.len() < text.len() { "…" } else { "" };
    format!("{start:?}{more}")
}

fn join(table: &str, name: &str) -> String {
    let bare = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_');
    let name = if !name.is_empty() && name.chars().all(bare) { name.to_owned() } else { quoted(name) };
    if table.is_empty() { name } else { format!("{table}.{name}") }
}

/// A whole number and its unit: `250ms`, `10s`, `5m`, `2h`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|char: char| !char.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    if number.is_empty() {
        return None;
    }
    // Digits that do not fit are too long for every range, not malformed.
    let number: u64 = number.parse().unwrap_or(u64::MAX);
    Some(Duration::from_millis(number.saturating_mul(milliseconds)))
}

/// A whole number and its unit, in powers of ten: `500kB`, `10MB`, `1GB`.
fn size(text: &str) -> Option<u64> {
    let units = [("kB", 1000), ("MB", 1_000_000), ("GB", 1_000_000_000)];
    let (number, unit) = units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(number.parse().unwrap_or(u64::MAX).saturating_mul(*unit))
}

/// The shortest way to write it.
pub(super) fn shown(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    for (unit, length) in [("h", 3_600_000), ("m", 60_000), ("s", 1000)] {
        if milliseconds.is_multiple_of(length) {
            return format!("{}{unit}", milliseconds / length);
        }
    }
    format!("{milliseconds}ms")
}
