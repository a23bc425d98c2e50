#include "directory_ini.h"

#include <string.h>
#include <time.h>

#include <php.h>
#include <SAPI.h>
#include <php_globals.h>
#include <php_ini.h>
#include <fopen_wrappers.h>

/* Folders whose files are remembered. A site has some dozens; a host of thousands begins anew now and then. */
#define MOST_FOLDERS 4096

/* What the files of one folder, and of those above it, say. */
struct entry {
    HashTable settings;
    time_t expires;
};

static HashTable cache; /* by the folder's path */
static bool cache_ready;

static void destroy_entry(zval *value)
{
    struct entry *entry = Z_PTR_P(value);
    zend_hash_destroy(&entry->settings);
    free(entry);
}

/* The users' files in all folders from `root` (a prefix of `folder` then, without its slash) to `folder`, or in `folder` alone. */
static void read_files(HashTable *settings, char *folder, size_t length, const char *root)
{
    size_t root_length = root ? strlen(root) : 0;
    while (root_length > 0 && root[root_length - 1] == '/') {
        root_length--;
    }
    bool below = root_length < length && strncmp(folder, root ? root : "", root_length) == 0;
    for (char *slash = below ? folder + root_length : folder + length - 1; (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        php_parse_user_ini_file(folder, PG(user_ini_filename), settings);
        *slash = '/';
    }
}

/* Sections [HOST=] and [PATH=], and settings with an index, become arrays: PHP takes them for strings when it applies them, and
 * the process ends. */
static int is_no_string(zval *value)
{
    return Z_TYPE_P(value) == IS_STRING ? ZEND_HASH_APPLY_KEEP : ZEND_HASH_APPLY_REMOVE;
}

/* `folder` ends in a slash. */
static void activate_user_files(char *folder, size_t length, const char *root)
{
    if (!cache_ready || zend_hash_num_elements(&cache) >= MOST_FOLDERS) {
        if (cache_ready) {
            zend_hash_destroy(&cache);
        }
        zend_hash_init(&cache, 8, NULL, destroy_entry, 1);
        cache_ready = true;
    }
    time_t now = (time_t) sapi_get_request_time();
    struct entry *entry = zend_hash_str_find_ptr(&cache, folder, length);
    if (!entry) {
        entry = calloc(1, sizeof *entry);
        if (!entry) {
            return;
        }
        zend_hash_init(&entry->settings, 8, NULL, config_zval_dtor, 1);
        zend_hash_str_update_ptr(&cache, folder, length, entry);
    }
    if (entry->expires == 0 || now > entry->expires) {
        zend_hash_clean(&entry->settings);
        read_files(&entry->settings, folder, length, root);
        zend_hash_apply(&entry->settings, is_no_string);
        entry->expires = now + PG(user_ini_cache_ttl);
    }
    php_ini_activate_config(&entry->settings, PHP_INI_PERDIR, PHP_INI_STAGE_HTACCESS);
}

static void activate_host(const char *name)
{
    char *lower = estrdup(name);
    size_t length = strlen(lower);
    zend_str_tolower(lower, length);
    php_ini_activate_per_host_config(lower, length);
    efree(lower);
}

void shim_activate_ini(const char *script, const char *document_root, const char *server_name)
{
    if (!script) {
        return;
    }
    if (server_name && php_ini_has_per_host_config()) {
        activate_host(server_name);
    }
    bool user_files = PG(user_ini_filename) && *PG(user_ini_filename) && document_root;
    if (!user_files && !php_ini_has_per_dir_config()) {
        return;
    }
    char *folder = *script == '/' ? estrdup(script) : expand_filepath(script, NULL);
    if (!folder) {
        return;
    }
    size_t length = (size_t) (strrchr(folder, '/') + 1 - folder);
    folder[length] = '\0';
    if (php_ini_has_per_dir_config()) {
        php_ini_activate_per_dir_config(folder, length);
    }
    if (user_files) {
        activate_user_files(folder, length, document_root);
    }
    efree(folder);
}
