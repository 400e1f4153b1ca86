# {{service}} has lanes: which of them a request is for. Nothing here changes with a deploy.
{{servers}}

sub {{word}}_lane {
  # The lane that a request names: the prefix of its URL, /_lane/3/..., which goes no further, or else the header that its
  # page has it sent with.
  if (req.url ~ "^/_lane/[^/?]*/") {
    set req.http.X-Deployer-Lane = regsub(req.url, "^/_lane/([^/?]*)/.*$", "\1");
    set req.url = regsub(req.url, "^/_lane/[^/?]*/", "/");
  } else {
    # Several such headers become one, which is no number.
    std.collect(req.http.X-Deployer-Lane);
  }
  # Only a number from 1 to {{count}} is a lane. All else ("02", "2x", "2,3", nothing), and a page itself, is lane 0: whatever is
  # current. It is told by that there is no header. Browsers say what is a page where pages come by HTTPS, or from localhost.
  if (req.http.X-Deployer-Lane !~ "^[1-9][0-9]{0,2}$" || std.integer(req.http.X-Deployer-Lane, 0) > {{count}} ||
      (req.http.Sec-Fetch-Mode == "navigate" && req.http.Sec-Fetch-Dest == "document")) {
    unset req.http.X-Deployer-Lane;
  }
{{why}}
{{choice}}
}
