//! What browsers have seen, summed up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, Result};

use crate::journal::monotonic_ns;
use crate::pages::Said;

/// So many of a kind are kept in words.
const KEPT: usize = 10;

/// What a page says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The version that made it.
    pub version: String,
    /// The lane to which its requests belong; empty: none.
    pub lane: String,
    /// Different for each that a worker has made; copies share it.
    pub id: String,
}

/// One page as it was loaded.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// CLOCK_MONOTONIC when it was asked for.
    pub begin_ns: u64,
    /// CLOCK_MONOTONIC when it was there.
    pub end_ns: u64,
    /// Whether it may be a copy that a cache had.
    pub cached: bool,
    /// The page.
    pub page: Page,
}

/// What browsers have seen. What was sent twice behind their backs is in the workers' [journal](crate::journal::Journal::doubled).
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Pages by version.
    pub pages: BTreeMap<String, usize>,
    /// The pages themselves, in the order of their arrival.
    pub loaded: Vec<Loaded>,
    /// XHRs that were answered, by whatever version.
    pub xhrs: usize,
    /// Of these, answered by another version than their page's.
    pub mixed: usize,
    /// The ids of the pages whose XHRs these were.
    pub mixed_pages: BTreeSet<String>,
    /// The first of them, in words.
    pub first_mixed: Vec<String>,
    /// Pages and XHRs that failed: any status but 200, a connection that was refused or cut, no answer in time.
    pub failed: usize,
    /// The first of them, in words.
    pub first_failed: Vec<String>,
    /// How many of them the load balancer put down to which of its backends, if it says so (`blames NAME` in its answer).
    pub blamed: BTreeMap<String, usize>,
}

impl Page {
    /// From its HTML.
    pub fn parse(html: &str) -> Result<Self> {
        let value = |name: &str| {
            let (_, rest) = html.split_once(&format!("{name}=\""))?;
            Some(rest.split_once('"')?.0.to_owned())
        };
        let of = |name| value(name).with_context(|| format!("a page without {name}: {html:?}"));
        Ok(Self { version: of("data-version")?, lane: of("data-lane")?, id: of("data-page")? })
    }
}

impl Seen {
    /// Takes note of a page that has come, or has not, and returns it.
    pub(super) fn page(&mut self, what: &str, cached: bool, begin_ns: u64, page: Result<Page>) -> Option<Page> {
        match page {
            Ok(page) => {
                *self.pages.entry(page.version.clone()).or_default() += 1;
                self.loaded.push(Loaded { begin_ns, end_ns: monotonic_ns(), cached, page: page.clone() });
                Some(page)
            }
            Err(error) => {
                self.fail(format!("{what}: {error:#}"));
                None
            }
        }
    }

    /// Takes note of an XHR.
    pub(super) fn xhr(&mut self, what: &str, page: &Page, said: Result<Said>) {
        let of = format!("{what} of page {} ({}, lane {:?})", page.id, page.version, page.lane);
        match said {
            Err(error) => self.fail(format!("{of}: {error:#}")),
            Ok(said) => {
                self.xhrs += 1;
                if said.version != page.version {
                    self.mixed += 1;
                    self.mixed_pages.insert(page.id.clone());
                    let by = format!("answered by {} (lane {:?}, pid {})", said.version, said.lane, said.pid);
                    keep(&mut self.first_mixed, format!("{of}: {by}, {} ns", monotonic_ns()));
                }
            }
        }
    }

    fn fail(&mut self, what: String) {
        self.failed += 1;
        if let Some((_, rest)) = what.split_once("blames ") {
            let name =
                rest.split(|c: char| !c.is_ascii_alphanumeric() && !"_-.".contains(c)).next().unwrap_or_default();
            *self.blamed.entry(name.to_owned()).or_default() += 1;
        }
        keep(&mut self.first_failed, format!("{what}, {} ns", monotonic_ns()));
    }
}

fn keep(list: &mut Vec<String>, text: String) {
    if list.len() < KEPT {
        list.push(text);
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pages, loaded, xhrs, mixed, failed, .. } = self;
        writeln!(f, "{} pages {pages:?}, {xhrs} XHRs, {mixed} mixed, {failed} failed", loaded.len())?;
        for line in &self.first_mixed {
            writeln!(f, "  mixed: {line}")?;
        }
        for line in &self.first_failed {
            writeln!(f, "  failed: {line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn page(version: &str) -> Page {
        Page { version: version.to_owned(), lane: "3".to_owned(), id: "ab12".to_owned() }
    }

    fn said(version: &str) -> Said {
        Said {
            version: version.to_owned(),
            lane: "4".to_owned(),
            pid: 7,
            connection: 1,
            query: String::new(),
            named: Vec::new(),
            host: Vec::new(),
        }
    }

    #[test]
    fn a_page_is_read() {
        let html = "<title>v2</title>\n<body data-version=\"v1\" data-lane=\"3\" data-page=\"ab12\">\n";
        assert_eq!(Page::parse(html).unwrap(), page("v1"));
        let bare = Page::parse(&html.replace("\"3\"", "\"\"")).unwrap();
        assert_eq!(bare.lane, "");
        let error = Page::parse(&html.replace("data-lane", "lane")).unwrap_err().to_string();
        assert!(error.contains("without data-lane"), "{error}");
    }

    #[test]
    fn the_account_is_right() {
        let mut seen = Seen::default();
        assert!(seen.page("r-0-0-1 GET /page", false, 1, Err(anyhow!("cut after 0 bytes"))).is_none());
        let v1 = seen.page("r-0-0-2 GET /page", true, 2, Ok(page("v1"))).unwrap();
        seen.xhr("r-0-0-3 GET /xhr", &v1, Ok(said("v1")));
        seen.xhr("r-0-0-4 POST /xhr", &v1, Ok(said("v2")));
        seen.xhr("r-0-0-5 GET /xhr", &v1, Err(anyhow!("status 502: \"blames h3\"")));
        seen.page("r-0-0-6 GET /page", false, 3, Ok(page("v2")));
        assert_eq!((seen.pages["v1"], seen.pages["v2"], seen.loaded.len()), (1, 1, 2));
        assert_eq!(seen.blamed.get("h3"), Some(&1));
        assert!(seen.loaded[0].cached && seen.loaded[0].begin_ns == 2 && !seen.loaded[1].cached);
        assert_eq!((seen.xhrs, seen.mixed, seen.failed), (2, 1, 2));
        let mixed = "r-0-0-4 POST /xhr of page ab12 (v1, lane \"3\"): answered by v2 (lane \"4\", pid 7), ";
        assert!(seen.first_mixed[0].starts_with(mixed), "{seen}");
        assert!(seen.first_failed[0].contains("r-0-0-1 GET /page: cut after 0 bytes"), "{seen}");
        assert!(seen.first_failed[1].contains("status 502"), "{seen}");
        assert!(seen.to_string().starts_with("2 pages {\"v1\": 1, \"v2\": 1}, 2 XHRs, 1 mixed, 2 failed\n"), "{seen}");
    }

    #[test]
    fn only_the_first_are_kept() {
        let mut seen = Seen::default();
        for _ in 0..100 {
            seen.xhr("x", &page("v1"), Ok(said("v2")));
            seen.xhr("x", &page("v1"), Err(anyhow!("refused")));
        }
        assert_eq!((seen.mixed, seen.mixed_pages.len(), seen.failed), (100, 1, 100));
        assert_eq!((seen.first_mixed.len(), seen.first_failed.len()), (KEPT, KEPT));
    }
}
