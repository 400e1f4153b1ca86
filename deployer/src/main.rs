mod kernel;
fn main() -> anyhow::Result<()> {
    let dir = std::env::args().nth(1).expect("cgroup");
    let at = kernel::attachment(Some(dir.as_ref()), Some(dir.as_ref()))?;
    let (_p, _t) = kernel::Programs::attach(&at)?;
    println!("attached");
    Ok(())
}
