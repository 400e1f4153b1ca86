//! The version of an application, as an operator asks for it and as a worker reports it.
//!
//! A version is put into commands, file names, environments and paths in ZooKeeper. So every place where one enters
//! checks it, by making a [`Version`]: the command line, the API, a worker's answer, ZooKeeper, the journal.

use std::{fmt, ops::Deref, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize};

/// Longest version, in characters.
pub const LONGEST: usize = 128;
/// Characters of a text that is no version in a message.
const SHOWN: usize = 64;

/// A version: a letter or a digit, then letters, digits, `.`, `_`, `+` and `-`; ASCII, at most [`LONGEST`] characters.
/// So it is neither an option (`--help`) nor a path (`../x`), and a shell reads it as one plain word.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Version(String);

/// Why a text is not a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{shown} is not a valid version: write a letter or a digit first, then letters, digits, and any of ._+- \
     (1 to {LONGEST} characters)"
)]
pub struct NotAVersion {
    shown: String,
}

impl Version {
    /// Checks a text.
    ///
    /// # Errors
    /// [`NotAVersion`] names the text.
    pub fn new(text: impl Into<String>) -> Result<Self, NotAVersion> {
        let text = text.into();
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
        let is_version = text.len() <= LONGEST
            && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
            && text.bytes().all(legal);
        if is_version { Ok(Self(text)) } else { Err(NotAVersion { shown: shown(&text) }) }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text from elsewhere for a message: quoted, cut, and in printable ASCII, so that it does nothing to a terminal.
#[must_use]
pub fn shown(text: &str) -> String {
    let mut chars = text.chars();
    let kept: String = chars.by_ref().take(SHOWN).flat_map(char::escape_default).collect();
    format!("\"{kept}{}\"", if chars.next().is_some() { "..." } else { "" })
}

/// Reads a version that this host has written down. One that is not valid (an earlier deployer allowed more, or a file
/// was changed by hand) counts as unknown, so that nothing else of the file is lost.
///
/// # Errors
/// When it is not a text.
pub fn known<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Version>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    Ok(text.and_then(|text| match Version::new(text) {
        Ok(version) => Some(version),
        Err(error) => {
            tracing::warn!(%error, "a version that was written down is not valid, and counts as unknown");
            None
        }
    }))
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

impl FromStr for Version {
    type Err = NotAVersion;

    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        Self::new(text)
    }
}

impl Deref for Version {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.0
    }
}

impl PartialEq<str> for Version {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<&str> for Version {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

#[cfg(test)]
impl From<&str> for Version {
    fn from(text: &str) -> Self {
        Self::new(text).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_a_version() {
        for good in ["v1", "7", "1.2.3-rc1+build.5", "2026_01_31", "a-", &"x".repeat(LONGEST)] {
            assert_eq!(Version::new(good).unwrap(), *good);
        }
        let long = "x".repeat(LONGEST + 1);
        let bad = [
            "",
            " ",
            "--help",
            "-rf",
            ".",
            "..",
            "../../tmp/evil",
            "/etc",
            "a/b",
            "$(x)",
            "a;b",
            "a b",
            "a\n",
            "\n",
            "a\0b",
            "{version}",
            "a%s",
            "a:b",
            "a@b",
            "a~b",
            "a,b",
            "+1",
            "_x",
            "\u{e9}",
            "v\u{661}",
            "\u{202e}v1",
            "v1 ",
            "a'b",
            &long,
        ];
        for bad in bad {
            assert!(Version::new(bad).is_err(), "{bad:?}");
            assert!(serde_json::from_value::<Version>(bad.into()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_text_from_elsewhere_is_cleaned_and_cut() {
        assert_eq!(shown("a\x1b[2J\u{202e}\"\n"), "\"a\\u{1b}[2J\\u{202e}\\\"\\n\"");
        assert_eq!(shown(&"x".repeat(1000)), format!("\"{}...\"", "x".repeat(SHOWN)));
        let error = Version::new("--help").unwrap_err().to_string();
        assert!(error.starts_with("\"--help\" is not a valid version: write a letter"), "{error}");
    }

    #[test]
    fn one_that_was_written_down_and_is_not_valid_is_unknown() {
        #[derive(Deserialize)]
        struct Kept {
            #[serde(default, deserialize_with = "known")]
            version: Option<Version>,
        }
        let read = |text: &str| serde_json::from_str::<Kept>(text).map(|kept| kept.version.map(String::from));
        assert_eq!(read(r#"{"version":"v1"}"#).unwrap(), Some("v1".to_owned()));
        for unknown in [r#"{"version":"../x"}"#, r#"{"version":null}"#, "{}"] {
            assert_eq!(read(unknown).unwrap(), None, "{unknown}");
        }
        assert!(read(r#"{"version":7}"#).is_err());
    }

    proptest! {
        #[test]
        fn a_version_is_one_plain_word(text in ".{0,140}") {
            if let Ok(version) = Version::new(text.as_str()) {
                prop_assert_eq!(version.as_str(), text.as_str());
                let is_plain = !text.starts_with(['-', '.']) && !text.contains(['/', '$', ';', '\'', '"', '{', '=']);
                prop_assert!(is_plain);
                let is_short = text.chars().all(|char| char.is_ascii_graphic()) && (1..=LONGEST).contains(&text.len());
                prop_assert!(is_short);
            }
        }
    }
}
