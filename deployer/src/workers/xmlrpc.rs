//! XML-RPC as text: writes a call, reads an answer.
//!
//! The peer is another process and may be anything that owns the socket's path, so reading assumes nothing: depth and
//! number of elements are limited, and whatever is not an answer is an error that says what it is instead.

use std::{collections::BTreeMap, fmt::Write};

use quick_xml::{
    Reader,
    events::{BytesRef, Event},
    name::QName,
};

/// Deepest nesting read. The deepest that supervisord sends (a struct in an array) is 10.
const DEPTH: usize = 32;
/// Most elements read; a process is about 60, so that is some 3,000 processes.
const ELEMENTS: usize = 200_000;

/// An argument of a call.
#[derive(Debug, Clone, Copy)]
pub(super) enum Argument<'a> {
    Text(&'a str),
    Bool(bool),
}

/// A value in an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Int(i64),
    Bool(bool),
    Text(String),
    List(Vec<Value>),
    Record(BTreeMap<String, Value>),
}

/// What a call brings back.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    Value(Value),
    Fault { code: i64, text: String },
}

/// The document for a call.
pub(super) fn call(method: &str, arguments: &[Argument<'_>]) -> String {
    let mut xml = String::from("<?xml version=\"1.0\"?><methodCall><methodName>");
    escape(&mut xml, method);
    xml.push_str("</methodName><params>");
    for argument in arguments {
        xml.push_str("<param><value>");
        match argument {
            Argument::Text(text) => {
                xml.push_str("<string>");
                escape(&mut xml, text);
                xml.push_str("</string>");
            }
            Argument::Bool(yes) => {
                // Writing to a String cannot fail.
                let _ = write!(xml, "<boolean>{}</boolean>", u8::from(*yes));
            }
        }
        xml.push_str("</value></param>");
    }
    xml.push_str("</params></methodCall>");
    xml
}

/// Reads the document that answers a call; the error says what is wrong with it.
pub(super) fn answer(xml: &str) -> Result<Answer, String> {
    let root = tree(xml)?;
    if root.name != "methodResponse" {
        return Err(format!("<{}> where <methodResponse> belongs", root.name));
    }
    let inner = root.only()?;
    match inner.name.as_str() {
        "params" => Ok(Answer::Value(inner.only_named("param")?.only_named("value")?.value()?)),
        "fault" => {
            let fault = inner.only_named("value")?.value()?;
            let code = fault.int("faultCode")?;
            let text = short(fault.text("faultString")?);
            Ok(Answer::Fault { code, text })
        }
        other => Err(format!("<{other}> where <params> or <fault> belongs")),
    }
}

impl Value {
    /// A number in a record.
    pub(super) fn int(&self, key: &str) -> Result<i64, String> {
        match self.field(key)? {
            Self::Int(number) => Ok(*number),
            other => Err(format!("`{key}` is {}, not a number", other.kind())),
        }
    }

    /// A text in a record.
    pub(super) fn text(&self, key: &str) -> Result<&str, String> {
        match self.field(key)? {
            Self::Text(text) => Ok(text),
            other => Err(format!("`{key}` is {}, not a text", other.kind())),
        }
    }

    fn field(&self, key: &str) -> Result<&Value, String> {
        match self {
            Self::Record(fields) => fields.get(key).ok_or_else(|| format!("there is no `{key}`")),
            other => Err(format!("{} where a struct with `{key}` belongs", other.kind())),
        }
    }

    /// The kind of value, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Int(_) => "a number",
            Self::Bool(_) => "a boolean",
            Self::Text(_) => "a text",
            Self::List(_) => "an array",
            Self::Record(_) => "a struct",
        }
    }
}

/// Appends text in such a way that it stays text. Characters that XML 1.0 cannot hold at all become U+FFFD.
fn escape(xml: &mut String, text: &str) {
    for letter in text.chars() {
        match letter {
            '&' => xml.push_str("&amp;"),
            '<' => xml.push_str("&lt;"),
            '>' => xml.push_str("&gt;"),
            // A bare carriage return would be read as a line feed.
            '\r' => xml.push_str("&#13;"),
            '\t' | '\n' => xml.push(letter),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => xml.push('\u{fffd}'),
            _ => xml.push(letter),
        }
    }
}

/// An element with all that is in it.
#[derive(Debug, Default)]
struct Element {
    name: String,
    text: String,
    children: Vec<Element>,
}

impl Element {
    fn named(name: QName<'_>) -> Self {
        Self {
            // No name that means anything is cut by this.
            name: short(name.0),
            ..Self::default()
        }
    }

    fn only(&self) -> Result<&Element, String> {
        match self.children.as_slice() {
            [only] => Ok(only),
            all => Err(format!("<{}> has {} elements in it, not one", self.name, all.len())),
        }
    }

    fn only_named(&self, name: &str) -> Result<&Element, String> {
        let only = self.only()?;
        if only.name == name { Ok(only) } else { Err(format!("<{}> where <{name}> belongs", only.name)) }
    }

    /// Reads a `<value>`; recursion is bounded by [`DEPTH`].
    fn value(&self) -> Result<Value, String> {
        if self.name != "value" {
            return Err(format!("<{}> where <value> belongs", self.name));
        }
        if self.children.is_empty() {
            return Ok(Value::Text(self.text.clone()));
        }
        self.only()?.typed()
    }

    /// Reads what says its type.
    fn typed(&self) -> Result<Value, String> {
        match self.name.as_str() {
            "int" | "i4" | "i8" => match self.text.trim().parse() {
                Ok(number) => Ok(Value::Int(number)),
                Err(_) => Err(format!("`{}` is not a number", short(&self.text))),
            },
            "boolean" => match self.text.trim() {
                "0" => Ok(Value::Bool(false)),
                "1" => Ok(Value::Bool(true)),
                other => Err(format!("`{}` is not a boolean", short(other))),
            },
            // The last four are never looked at; as texts they do no harm.
            "string" | "double" | "dateTime.iso8601" | "base64" | "nil" => Ok(Value::Text(self.text.clone())),
            "array" => {
                let items = self.only_named("data")?.children.iter();
                items.map(Self::value).collect::<Result<_, _>>().map(Value::List)
            }
            "struct" => self.children.iter().map(Self::member).collect::<Result<_, _>>().map(Value::Record),
            other => Err(format!("<{}> is no type of value", short(other))),
        }
    }

    fn member(&self) -> Result<(String, Value), String> {
        match self.children.as_slice() {
            [name, value] if self.name == "member" && name.name == "name" => Ok((name.text.clone(), value.value()?)),
            _ => Err(format!("<{}> where <member> with <name> and <value> belongs", self.name)),
        }
    }
}

/// Reads a document into its root element.
fn tree(xml: &str) -> Result<Element, String> {
    let mut reader = Reader::from_str(xml);
    let mut open: Vec<Element> = Vec::new();
    let mut root = None;
    let mut count = 0_usize;
    loop {
        let event = reader.read_event().map_err(|error| format!("not XML: {}", short(&error.to_string())))?;
        if matches!(event, Event::Start(_) | Event::Empty(_)) {
            count += 1;
            if count > ELEMENTS || open.len() >= DEPTH || root.is_some() {
                return Err(format!("more than {ELEMENTS} elements, more than {DEPTH} deep, or more than one root"));
            }
        }
        match event {
            Event::Start(start) => open.push(Element::named(start.name())),
            Event::Empty(start) => close(Element::named(start.name()), &mut open, &mut root),
            // The reader has checked that the names agree.
            Event::End(_) => match open.pop() {
                Some(element) => close(element, &mut open, &mut root),
                None => return Err("an end tag without a start".to_owned()),
            },
            Event::Text(text) => append(&mut open, &text.xml10_content())?,
            Event::CData(text) => append(&mut open, &text.xml10_content())?,
            Event::GeneralRef(reference) => append(&mut open, resolve(&reference)?.encode_utf8(&mut [0; 4]))?,
            Event::DocType(_) => return Err("a document type, which no answer has".to_owned()),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            Event::Eof if !open.is_empty() => return Err("it ends in the middle".to_owned()),
            Event::Eof => return root.ok_or_else(|| "it is empty".to_owned()),
        }
    }
}

/// Puts a finished element where it belongs.
fn close(element: Element, open: &mut [Element], root: &mut Option<Element>) {
    match open.last_mut() {
        Some(parent) => parent.children.push(element),
        None => *root = Some(element),
    }
}

/// Appends to the text of the innermost open element.
fn append(open: &mut [Element], text: &str) -> Result<(), String> {
    match open.last_mut() {
        Some(element) => element.text.push_str(text),
        None if text.trim().is_empty() => {}
        None => {
            return Err(format!("`{}` where only an element may stand", short(text.trim())));
        }
    }
    Ok(())
}

fn resolve(reference: &BytesRef<'_>) -> Result<char, String> {
    match &**reference {
        "amp" => Ok('&'),
        "lt" => Ok('<'),
        "gt" => Ok('>'),
        "quot" => Ok('"'),
        "apos" => Ok('\''),
        name => match reference.resolve_char_ref() {
            Ok(Some(letter)) => Ok(letter),
            _ => Err(format!("`&{};` is not known", short(name))),
        },
    }
}

/// The beginning of a text, for messages: the peer may send long ones.
pub(super) fn short(text: &str) -> String {
    const KEPT: usize = 400;
    match text.char_indices().nth(KEPT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
