/* Settings that depend on where a script lies. */
#ifndef PHP_POOL_DIRECTORY_INI_H
#define PHP_POOL_DIRECTORY_INI_H

/* Applies, for the request that starts up: php.ini's [HOST=] sections for the server's name, its [PATH=] sections for every
 * folder above the script, and the users' own files (user_ini.filename) from the document root down to the script. Any
 * argument may be NULL: then what needs it is left out. */
void shim_activate_ini(const char *script, const char *document_root, const char *server_name);

#endif
