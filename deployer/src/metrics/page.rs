//! The text in which Prometheus reads figures: exposition format 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
//!
//! Written by hand: the usual crate, prometheus-client, writes OpenMetrics, which `promtool check metrics` does not read,
//! and keeps figures of its own, where ours are in the kernel. All lines of a family stand together, as the format asks.
//! Everything goes into one string, and the labels of a worker are rendered once, so that a page of a thousand workers
//! takes milliseconds.

use std::fmt::Write as _;

/// What a browser or Prometheus is told that the page is.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What kind of figures a family has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows, unless it begins anew.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by upper bounds, with their sum.
    Histogram,
}

/// A figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value {
    /// Written with all its digits.
    Whole(u64),
    /// Written as the shortest text that is read as the same number.
    Real(f64),
}

/// Labels, rendered: `service="web",worker="127.0.0.1:8000"`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Labels(String);

/// A page that is being written.
#[derive(Debug, Default)]
pub(super) struct Page(String);

/// A family whose lines are being written.
#[derive(Debug)]
pub(super) struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

/// What a histogram holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buckets<'a> {
    /// Upper bounds in seconds, as they are written, without the last, which is infinite.
    pub(super) bounds: &'a [&'static str],
    /// How much is below each bound and not below the one before, and at last what is below none: one more than bounds.
    pub(super) counts: &'a [u64],
    /// All of it added up, in seconds.
    pub(super) sum: f64,
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Whole(value as u64)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl Labels {
    /// Labels by name and value, whatever is in the values.
    #[must_use]
    pub(super) fn new(labels: &[(&'static str, &str)]) -> Self {
        Self::default().and(labels)
    }

    /// These and more.
    #[must_use]
    pub(super) fn and(&self, labels: &[(&'static str, &str)]) -> Self {
        let mut all = self.clone();
        labels.iter().for_each(|(name, value)| all.push(name, value));
        all
    }

    fn push(&mut self, name: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(name);
        self.0.push_str("=\"");
        escape(&mut self.0, value);
        self.0.push('"');
    }
}

/// A label's value as the format wants it: backslash, quote and the end of a line are escaped, nothing else.
fn escape(text: &mut String, value: &str) {
    for letter in value.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            letter => text.push(letter),
        }
    }
}

impl Page {
    /// An empty one, with room for so many bytes.
    #[must_use]
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(String::with_capacity(bytes))
    }

    /// Begins a family. Each name once; `help` is a line without backslashes.
    pub(super) fn family(&mut self, kind: Kind, name: &'static str, help: &'static str) -> Family<'_> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // A String takes whatever is written to it.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        Family { text: &mut self.0, name }
    }

    /// A family of one line without labels.
    pub(super) fn single(&mut self, kind: Kind, name: &'static str, help: &'static str, value: impl Into<Value>) {
        self.family(kind, name, help).add(&Labels::default(), value);
    }

    /// The text.
    #[must_use]
    pub(super) fn finish(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// Adds a line.
    pub(super) fn add(&mut self, labels: &Labels, value: impl Into<Value>) {
        self.line("", labels, None, value.into());
    }

    /// Adds a line with one label more, whose value needs no escape.
    pub(super) fn add_with(&mut self, labels: &Labels, name: &'static str, is: &'static str, value: impl Into<Value>) {
        self.line("", labels, Some((name, is)), value.into());
    }

    /// Adds the lines of a histogram.
    pub(super) fn add_buckets(&mut self, labels: &Labels, buckets: &Buckets<'_>) {
        let mut total = 0_u64;
        for (nth, count) in buckets.counts.iter().enumerate() {
            total = total.saturating_add(*count);
            let bound = buckets.bounds.get(nth).copied().unwrap_or("+Inf");
            self.line("_bucket", labels, Some(("le", bound)), total.into());
        }
        self.line("_sum", labels, None, buckets.sum.into());
        self.line("_count", labels, None, total.into());
    }

    fn line(&mut self, suffix: &str, Labels(labels): &Labels, more: Option<(&str, &str)>, value: Value) {
        let text = &mut *self.text;
        text.push_str(self.name);
        text.push_str(suffix);
        if !labels.is_empty() || more.is_some() {
            text.push('{');
            text.push_str(labels);
            if let Some((name, is)) = more {
                let comma = if labels.is_empty() { "" } else { "," };
                [comma, name, "=\"", is, "\""].iter().for_each(|part| text.push_str(part));
            }
            text.push('}');
        }
        // As above; and what is not a number is written as Prometheus wants it.
        let _ = match value {
            Value::Whole(value) => writeln!(text, " {value}"),
            Value::Real(f64::INFINITY) => writeln!(text, " +Inf"),
            Value::Real(f64::NEG_INFINITY) => writeln!(text, " -Inf"),
            Value::Real(value) => writeln!(text, " {value}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page(write: impl FnOnce(&mut Page)) -> String {
        let mut page = Page::default();
        write(&mut page);
        page.finish()
    }

    #[test]
    fn a_family_is_headed_once() {
        let text = page(|page| {
            let mut family = page.family(Kind::Counter, "a_total", "How many.");
            let labels = Labels::new(&[("service", "web")]);
            family.add(&labels, 7_u64);
            family.add_with(&labels, "outcome", "direct", u64::MAX);
            family.add_with(&Labels::default(), "outcome", "x", 1_u64);
        });
        let wanted = "# HELP a_total How many.\n# TYPE a_total counter\na_total{service=\"web\"} 7\n\
                      a_total{service=\"web\",outcome=\"direct\"} 18446744073709551615\na_total{outcome=\"x\"} 1\n";
        assert_eq!(text, wanted);
    }

    #[test]
    fn numbers_are_written_as_prometheus_reads_them() {
        let of = |value: f64| page(|page| page.single(Kind::Gauge, "g", "G.", value)).lines().last().map(str::to_owned);
        let cases = [(0.25, "g 0.25"), (f64::INFINITY, "g +Inf"), (f64::NAN, "g NaN"), (f64::NEG_INFINITY, "g -Inf")];
        cases.iter().for_each(|(value, wanted)| assert_eq!(of(*value).as_deref(), Some(*wanted)));
        assert!(page(|page| page.single(Kind::Gauge, "g", "G.", true)).ends_with("\ng 1\n"));
    }

    #[test]
    fn buckets_are_added_up() {
        let buckets = Buckets { bounds: &["0.1", "1"], counts: &[2, 0, 3], sum: 7.5 };
        let text = page(|page| {
            page.family(Kind::Histogram, "h_seconds", "H.").add_buckets(&Labels::new(&[("a", "b")]), &buckets);
        });
        let wanted = "h_seconds_bucket{a=\"b\",le=\"0.1\"} 2\nh_seconds_bucket{a=\"b\",le=\"1\"} 2\n\
                      h_seconds_bucket{a=\"b\",le=\"+Inf\"} 5\nh_seconds_sum{a=\"b\"} 7.5\nh_seconds_count{a=\"b\"} 5\n";
        assert!(text.ends_with(wanted), "{text}");
    }

    /// What a reader of the format makes of an escaped value.
    fn unescaped(text: &str) -> String {
        let (mut out, mut letters) = (String::new(), text.chars());
        while let Some(letter) = letters.next() {
            match letter {
                '\\' => match letters.next().unwrap() {
                    'n' => out.push('\n'),
                    other => out.push(other),
                },
                letter => out.push(letter),
            }
        }
        out
    }

    proptest! {
        #[test]
        fn any_value_stays_in_its_quotes(value in any::<String>()) {
            let Labels(text) = Labels::new(&[("version", &value)]);
            let inner = text.strip_prefix("version=\"").unwrap().strip_suffix('"').unwrap();
            prop_assert!(!inner.contains('\n'));
            prop_assert!(!inner.replace("\\\\", "").replace("\\\"", "").contains('"'));
            prop_assert_eq!(unescaped(inner), value);
        }
    }
}
