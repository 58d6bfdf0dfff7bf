# Shows what the classifier said: a class parameter and a top-scope variable.
class motd (String $greeting = 'default greeting') {
  file { "{{.Applied}}/${trusted['certname']}.motd":
    ensure  => file,
    content => "${greeting} from ${::datacenter} in ${environment}\n",
  }
}
