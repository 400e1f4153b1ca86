{{servers}}

sub vcl_init {
  new {{director}} = directors.round_robin();
{{adds}}
}
