//! What `deployer lb` prints for a service with lanes, in the load balancers themselves: each lane's address is a plain
//! worker's here, without anything of the deployer's in the kernel.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deployer_tests::app::App;
use deployer_tests::daemon::DeployerBin;
use deployer_tests::haproxy::Haproxy;
use deployer_tests::http::{Request, Response};
use deployer_tests::nginx::{ADDRESS, Nginx};
use deployer_tests::pages::{Pages, Said, lane_address};
use deployer_tests::process;
use deployer_tests::sandbox::Sandbox;
use deployer_tests::varnish::Varnish;

/// The port of the example that `deployer lb` prints without a configuration.
pub(crate) const PORT: u16 = 9000;
const LANES: u8 = 3;
const LIMIT: Duration = Duration::from_secs(10);
/// Where Varnish listens in front of nginx.
pub(crate) const FRONT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8081);

const PAGE: [(&str, &str); 2] = [("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")];
const XHR: [(&str, &str); 2] = [("Sec-Fetch-Mode", "cors"), ("Sec-Fetch-Dest", "empty")];
const LANE: &str = "X-Deployer-Lane";

/// Header, path, lane: of requests that a page's script makes.
const NAMED: &[(Option<&str>, &str, u8)] = &[
    (Some("1"), "/xhr", 1),
    (Some("2"), "/xhr", 2),
    (Some("3"), "/xhr?a=/_lane/1/", 3),
    (None, "/_lane/2/xhr", 2),
    // The URL counts before the header.
    (Some("1"), "/_lane/2/xhr?a=b%2Fc&d=/", 2),
    (None, "/xhr", 0),
    // One form of each number.
    (Some("02"), "/xhr", 0),
    (Some("+2"), "/xhr", 0),
    (Some("0"), "/xhr", 0),
    (Some("4"), "/xhr", 0),
    (Some("99"), "/xhr", 0),
    (Some("4294967298"), "/xhr", 0),
    (Some("-1"), "/xhr", 0),
    (Some("2x"), "/xhr", 0),
    (Some("2.5"), "/xhr", 0),
    (Some("2,3"), "/xhr", 0),
    (Some("2 3"), "/xhr", 0),
    (Some(""), "/xhr", 0),
    (Some("2@10.0.0.1"), "/xhr", 0),
    (None, "/_lane/02/xhr", 0),
    (None, "/_lane/99/xhr", 0),
    (None, "/_lane/2x/xhr", 0),
    (None, "/_lane//xhr", 0),
    (Some("1"), "/_lane/x/xhr", 0),
    (None, "/xhr?/_lane/2/", 0),
    (None, "http://web/_lane/2/xhr?a=1", 2),
    (Some("3"), "http://web/xhr?a=1", 3),
];

/// What `deployer lb` prints, with these arguments.
pub(crate) fn printed(sandbox: &Sandbox, arguments: &[&str]) -> Result<String> {
    let mut command = DeployerBin::find()?.command(sandbox);
    process::run(command.arg("lb").args(arguments).args(["--lanes", &LANES.to_string()]))
}

struct Scene {
    sandbox: Sandbox,
    app: App,
    workers: Vec<Pages>,
}

impl Scene {
    /// A worker at each lane's address, of a version of its own.
    fn new(label: &str) -> Result<Self> {
        let sandbox = Sandbox::new(label)?;
        let app = App::new(&sandbox, &["v0"])?;
        let start = |lane| Pages::start(&sandbox, &app, lane_address(lane, PORT), &format!("v{lane}"), lane);
        let workers = (0..=LANES).map(start).collect::<Result<_>>()?;
        Ok(Self { sandbox, app, workers })
    }

    fn send(&self, to: SocketAddr, request: &Request<'_>) -> Result<Response> {
        let answer = self.sandbox.in_netns(|| request.send(to, LIMIT))??;
        ensure!(answer.status == 200, "{request:?}: {} {}", answer.status, answer.body);
        Ok(answer)
    }

    /// The lane whose worker answered an XHR, and what it said.
    fn ask(&self, to: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> Result<(u8, Said)> {
        let body = if method == "POST" { "x".repeat(10_000) } else { String::new() };
        let answer = self.send(to, &Request { method, path, headers, body: &body })?;
        let said = Said::parse(&answer.body).with_context(|| format!("{method} {path} {headers:?}"))?;
        let lane = said.version.trim_start_matches('v').parse()?;
        Ok((lane, said))
    }

    /// Everything that holds for all of them. `collects`: several headers are seen as such.
    fn judge(&self, to: SocketAddr, collects: bool) -> Result<()> {
        for (header, path, lane) in NAMED {
            let named = header.map(|value| (LANE, value));
            for (method, kind) in [("GET", XHR), ("POST", XHR), ("GET", PAGE), ("GET", [("Accept", "*/*"); 2])] {
                let headers: Vec<_> = kind.into_iter().chain(named).collect();
                let wanted = if kind == PAGE { 0 } else { *lane };
                let (got, said) = self.ask(to, method, path, &headers)?;
                ensure!(got == wanted, "{method} {path} {headers:?}: lane {got}, not {wanted}");
                let query = path.split_once('?').map_or("", |(_, query)| query);
                ensure!(said.query == query && said.host == ["web"], "{method} {path}: {said:?}");
            }
        }
        self.frames(to)?;
        let several = [(LANE, "2"), (LANE, "3")];
        let (got, _) = self.ask(to, "GET", "/xhr", &several)?;
        ensure!(got == if collects { 0 } else { 2 }, "two headers: lane {got}");
        Ok(())
    }

    /// A page in a page is for the lane of the outer one.
    fn frames(&self, to: SocketAddr) -> Result<()> {
        let headers = [("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "iframe"), (LANE, "2")];
        let (got, _) = self.ask(to, "GET", "/xhr", &headers)?;
        ensure!(got == 2, "a frame: lane {got}");
        Ok(())
    }

    /// No two requests of a client's connection may come on one connection of the load balancer's, whatever their lane.
    fn keeps_none(&self, to: SocketAddr) -> Result<()> {
        for lane in [None, Some((LANE, "2"))] {
            let headers: Vec<_> = lane.into_iter().collect();
            let request = Request { headers: &headers, ..Request::get("/xhr") };
            let answers = self.sandbox.in_netns(|| twice(to, &request))??;
            let numbers = answers.map(|answer| Said::parse(&answer.body).map(|said| said.connection));
            let [first, second] = numbers;
            let (first, second) = (first?, second?);
            ensure!(first != second, "{lane:?}: two requests came on connection {first}");
        }
        Ok(())
    }
}

/// Two requests on one connection of a client's.
fn twice(to: SocketAddr, request: &Request<'_>) -> Result<[Response; 2]> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = deployer_tests::client::Client::new(to);
        Ok([client.exchange(request).await?, client.exchange(request).await?])
    })
}

#[test]
fn nginx_goes_by_what_a_page_names() -> Result<()> {
    let scene = Scene::new("lb_nginx")?;
    let nginx = Nginx::start_lanes(&scene.sandbox, &printed(&scene.sandbox, &["nginx"])?)?;
    // Before nginx 1.23, it sees the first of several headers.
    scene.judge(ADDRESS, false)?;
    scene.keeps_none(ADDRESS)?;
    ensure!(nginx.error_lines()?.is_empty(), "{:?}", nginx.error_lines()?);
    Ok(())
}

#[test]
fn haproxy_goes_by_what_a_page_names() -> Result<()> {
    let scene = Scene::new("lb_haproxy")?;
    let haproxy = Haproxy::start(&scene.sandbox, &printed(&scene.sandbox, &["haproxy"])?)?;
    scene.judge(ADDRESS, true).with_context(|| haproxy.log())?;
    scene.keeps_none(ADDRESS)?;
    ensure!(haproxy.log().is_empty(), "{}", haproxy.log());
    Ok(())
}

#[test]
fn varnish_goes_by_what_a_page_names() -> Result<()> {
    let mut scene = Scene::new("lb_varnish")?;
    let text = printed(&scene.sandbox, &["varnish"])?;
    let _varnish = Varnish::start_caching(&scene.sandbox, ADDRESS, &text, &[])?;
    scene.judge(ADDRESS, true)?;
    scene.keeps_none(ADDRESS)?;
    copies(&mut scene, ADDRESS)
}

#[test]
fn varnish_in_front_of_nginx_tells_it() -> Result<()> {
    let mut scene = Scene::new("lb_both")?;
    let nginx = Nginx::start_lanes(&scene.sandbox, &printed(&scene.sandbox, &["nginx"])?)?;
    let text = printed(&scene.sandbox, &["varnish", "--via", &ADDRESS.to_string()])?;
    let _varnish = Varnish::start_caching(&scene.sandbox, FRONT, &text, &[])?;
    scene.judge(FRONT, true)?;
    // Nothing that is no lane gets past Varnish.
    for (header, path, lane) in NAMED {
        let headers: Vec<_> = header.iter().map(|value| (LANE, *value)).collect();
        let (_, said) = scene.ask(FRONT, "GET", path, &headers)?;
        let wanted: Vec<_> = (*lane > 0).then(|| lane.to_string()).into_iter().collect();
        ensure!(said.named == wanted, "{path} {headers:?}: {said:?}");
    }
    let (_, said) = scene.ask(FRONT, "GET", "/_lane/2/xhr", &PAGE)?;
    ensure!(said.named.is_empty(), "a page: {said:?}");
    copies(&mut scene, FRONT)?;
    ensure!(nginx.error_lines()?.is_empty(), "{:?}", nginx.error_lines()?);
    Ok(())
}

/// Copies are kept by lane, and a page's is that of lane 0, whatever the browser names.
fn copies(scene: &mut Scene, front: SocketAddr) -> Result<()> {
    kept_by_lane(scene, front)?;
    foreign(scene, front)
}

fn kept_by_lane(scene: &Scene, front: SocketAddr) -> Result<()> {
    let page = |kind: [(&str, &str); 2], lane: Option<&str>| -> Result<(String, String)> {
        let headers: Vec<_> = kind.into_iter().chain(lane.map(|lane| (LANE, lane))).collect();
        let answer = scene.send(front, &Request { headers: &headers, ..Request::get("/page?cache=60") })?;
        let version = answer.header("X-Version").context("X-Version")?.to_owned();
        Ok((version, answer.body))
    };
    let first = page(PAGE, None)?;
    ensure!(first.0 == "v0", "{first:?}");
    ensure!(page(PAGE, Some("2"))? == first, "a page whose browser names a lane is a copy of lane 0's");
    ensure!(page(XHR, Some("99"))? == first, "and so is what names no lane");
    let second = page(XHR, Some("2"))?;
    ensure!(second.0 == "v2" && page(XHR, Some("2"))? == second, "{second:?}");
    ensure!(page(XHR, Some("3"))?.0 == "v3", "lane 3 got a copy of another");
    ensure!(page(PAGE, None)? == first, "the page's copy is not kept");
    Ok(())
}

/// No copy is kept of what another lane's worker answers, as it does for a lane that nobody has yet.
fn foreign(scene: &mut Scene, front: SocketAddr) -> Result<()> {
    let headers = [(LANE, "3")];
    let bodies = |scene: &Scene| -> Result<[String; 2]> {
        let body = || -> Result<String> {
            Ok(scene.send(front, &Request { headers: &headers, ..Request::get("/page?cache=61") })?.body)
        };
        Ok([body()?, body()?])
    };
    scene.workers.pop();
    scene.workers.push(Pages::start(&scene.sandbox, &scene.app, lane_address(LANES, PORT), "v0", 1)?);
    let [first, second] = bodies(scene)?;
    ensure!(first != second, "a copy of lane 1's answer is kept for lane 3: {first}");
    scene.workers.pop();
    scene.workers.push(Pages::start(&scene.sandbox, &scene.app, lane_address(LANES, PORT), "v3", LANES)?);
    let [first, second] = bodies(scene)?;
    ensure!(first == second && first.contains("v3"), "lane 3's own answer is not kept: {first} {second}");
    Ok(())
}
