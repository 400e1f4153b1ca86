
sub vcl_recv {
  # Which lane a request is for, the host says that gets it: header and URL go on as they are.
  {{choice}}
}

sub vcl_backend_error {
  # A host that is gone, and whose session has not ended yet, is in the set for some seconds more. The next one is asked
  # instead, once. Varnish does not say here how far a fetch came: others than GET and HEAD may have been done.
  if (bereq.retries < 1 && (bereq.method == "GET" || bereq.method == "HEAD")) {
    return (retry);
  }
}
