//! No input makes the parser panic, and every refusal says where and why.

use proptest::prelude::*;

use super::{super::Config, FULL, managers};

/// What replaces a value: right in one place or another, wrong in most.
const VALUES: &[&str] = &[
    "-1",
    "0",
    "99999999999999999999999",
    "0xffffffff",
    "1e400",
    "nan",
    "true",
    "[]",
    "{}",
    "[[]]",
    "{ a = 1 }",
    "\"\"",
    "\"\\u0000\"",
    "\"\\n\"",
    "\"é\"",
    "\"/\"",
    "\"..\"",
    "\"{\"",
    "\"}{port\"",
    "\"99999999999h\"",
    "\"ms\"",
    "\":\"",
    "\"-\"",
    "\"[::1]:0-65535\"",
    "\"[:\"",
    "\"1.1.1.1:1-\"",
    "\"255%\"",
    "1979-05-27",
    "\"GET \"",
    "\" /\"",
    "[\"\"]",
    "[1, \"a\"]",
    "'''",
    "\"\\U0010ffff\"",
];

/// Every key there is.
fn full() -> String {
    format!("{FULL}{}", managers::FULL)
}

fn check(text: &str) -> Result<(), TestCaseError> {
    let Err(error) = Config::parse("x.toml".as_ref(), text) else {
        return Ok(());
    };
    let shown = error.to_string();
    prop_assert!(!error.problems().is_empty());
    prop_assert_eq!(shown.split('\n').count(), error.problems().len(), "{}", shown);
    let lines = text.split('\n').count();
    for problem in error.problems() {
        prop_assert!((1..=lines).contains(&problem.line), "{}", shown);
        prop_assert!(!problem.reason.is_empty());
    }
    Ok(())
}

/// The nearest character boundary at or below a share of the text.
fn boundary(text: &str, at: prop::sample::Index) -> usize {
    text.floor_char_boundary(at.index(text.len() + 1))
}

proptest! {
    #[test]
    fn any_text(text in any::<String>()) {
        check(&text)?;
    }

    #[test]
    fn any_toml_like_text(text in "([a-z\\[\\]{}=\"'.,:/0-9\\n -]|daemon|service|workers|manager){0,80}") {
        check(&text)?;
    }

    #[test]
    fn a_valid_file_with_characters_replaced(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..12, "\\PC{0,3}|[\"{}\\[\\]=\n]"), 1..5),
    ) {
        let mut text = full();
        for (at, length, new) in edits {
            let start = boundary(&text, at);
            let end = text.floor_char_boundary((start + length).min(text.len())).max(start);
            text.replace_range(start..end, &new);
        }
        check(&text)?;
    }

    #[test]
    fn a_valid_file_with_values_replaced(
        edits in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(VALUES)), 1..6),
    ) {
        let mut text = full();
        for (at, new) in edits {
            let values: Vec<_> = text.match_indices("= ").map(|(start, _)| start + 2).collect();
            if values.is_empty() {
                break;
            }
            let start = values[at.index(values.len())];
            let rest = &text[start..];
            let end = start + rest.find([',', '}', '\n']).unwrap_or(rest.len());
            text.replace_range(start..end, new);
        }
        check(&text)?;
    }
}
