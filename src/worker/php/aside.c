/* Requests that no client has sent, in processes that serve none. */

#include "shim.h"

#include <string.h>
#include <strings.h>
#include <unistd.h>

#include <php.h>
#include <SAPI.h>
#include <php_main.h>
#include <ext/standard/info.h>
#include <zend_exceptions.h>
#include <zend_extensions.h>
#include <zend_modules.h>

/* PHP works on a copy of our module, so that the other way of its output changes nothing of ours. */
static bool begin_aside(size_t (*write)(const char *text, size_t length))
{
    sapi_module.ub_write = write;
    sapi_module.flush = NULL;
    sapi_module.send_headers = NULL;
    sapi_module.activate = sapi_module.deactivate = NULL;
    if (php_request_startup() == FAILURE) {
        return false;
    }
    SG(headers_sent) = 1;
    SG(request_info).no_headers = 1;
    return true;
}

/* ---------------------------------------------------------------- what opcache holds */

static size_t write_nowhere(const char *text, size_t length)
{
    (void) text;
    return length;
}

/* Calls a function of opcache's in a request of its own, of which nobody hears anything. */
static void ask_opcache(const char *name, zval *argument, void (*look)(zval *result, void *context), void *context)
{
    zend_first_try {
        if (begin_aside(write_nowhere)) {
            zval function, result;
            ZVAL_STRING(&function, name);
            ZVAL_UNDEF(&result);
            EG(error_reporting) = 0;
            if (zend_hash_exists(EG(function_table), Z_STR(function)) &&
                call_user_function(NULL, NULL, &function, &result, 1, argument) == SUCCESS && look) {
                look(&result, context);
            }
            zend_clear_exception();
            zval_ptr_dtor(&result);
            zval_ptr_dtor(&function);
        }
    } zend_end_try();
    php_request_shutdown(NULL);
}

struct listener {
    bool (*each)(void *context, const char *path, size_t length);
    void *context;
};

static int compare_hits(Bucket *a, Bucket *b)
{
    zval *hits[] = {&a->val, &b->val};
    for (int i = 0; i < 2; i++) {
        hits[i] = Z_TYPE_P(hits[i]) == IS_ARRAY ? zend_hash_str_find(Z_ARRVAL_P(hits[i]), ZEND_STRL("hits")) : NULL;
    }
    zend_long difference = (hits[1] ? zval_get_long(hits[1]) : 0) - (hits[0] ? zval_get_long(hits[0]) : 0);
    return (difference > 0) - (difference < 0);
}

static void tell_scripts(zval *status, void *context)
{
    struct listener *listener = context;
    zval *scripts = Z_TYPE_P(status) == IS_ARRAY ? zend_hash_str_find(Z_ARRVAL_P(status), ZEND_STRL("scripts")) : NULL;
    if (!scripts || Z_TYPE_P(scripts) != IS_ARRAY) {
        return;
    }
    SEPARATE_ARRAY(scripts);
    zend_hash_sort(Z_ARRVAL_P(scripts), compare_hits, 0);
    zval *script;
    ZEND_HASH_FOREACH_VAL(Z_ARRVAL_P(scripts), script) {
        zval *path = Z_TYPE_P(script) == IS_ARRAY ? zend_hash_str_find(Z_ARRVAL_P(script), ZEND_STRL("full_path")) : NULL;
        if (path && Z_TYPE_P(path) == IS_STRING && !listener->each(listener->context, Z_STRVAL_P(path), Z_STRLEN_P(path))) {
            return;
        }
    } ZEND_HASH_FOREACH_END();
}

void shim_each_compiled(bool (*each)(void *context, const char *path, size_t length), void *context)
{
    struct listener listener = {each, context};
    zval with_scripts;
    ZVAL_TRUE(&with_scripts);
    ask_opcache("opcache_get_status", &with_scripts, tell_scripts, &listener);
}

void shim_compile(const char *path)
{
    zval file;
    ZVAL_STR(&file, zend_string_init(path, strlen(path), true)); /* the request's own memory is not there yet */
    ask_opcache("opcache_compile_file", &file, NULL, NULL);
    zend_string_release(Z_STR(file));
}

/* ---------------------------------------------------------------- php -v, -m, -i */

static size_t write_to_stdout(const char *text, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t n = write(STDOUT_FILENO, text + done, length - done);
        if (n <= 0) {
            break;
        }
        done += (size_t) n;
    }
    return length;
}

static bool print_begin(void)
{
    sapi_module.phpinfo_as_text = 1;
    return begin_aside(write_to_stdout);
}

void shim_print_version(void)
{
    if (print_begin()) {
#if PHP_VERSION_ID >= 80400
        php_print_version(&sapi_module);
#else
        php_printf("PHP %s (%s) (built: %s %s)\nCopyright (c) The PHP Group\n%s", PHP_VERSION, sapi_module.name, __DATE__, __TIME__,
                   get_zend_version());
#endif
        php_request_shutdown(NULL);
    }
}

static int compare_names(Bucket *a, Bucket *b)
{
    return strcasecmp(ZSTR_VAL(a->key), ZSTR_VAL(b->key));
}

static void add_name(HashTable *names, const char *name)
{
    zval none;
    ZVAL_NULL(&none);
    zend_hash_str_update(names, name, strlen(name), &none);
}

/* In the order of the alphabet, whatever the order of loading; empties the table. */
static void print_names(const char *head, HashTable *names)
{
    zend_hash_sort(names, compare_names, 0);
    php_printf("[%s]\n", head);
    zend_string *name;
    ZEND_HASH_FOREACH_STR_KEY(names, name) {
        php_printf("%s\n", ZSTR_VAL(name));
    } ZEND_HASH_FOREACH_END();
    php_printf("\n");
    zend_hash_clean(names);
}

void shim_print_modules(void)
{
    if (!print_begin()) {
        return;
    }
    HashTable names;
    zend_hash_init(&names, 64, NULL, NULL, 0);
    zend_module_entry *module;
    ZEND_HASH_FOREACH_PTR(&module_registry, module) {
        add_name(&names, module->name);
    } ZEND_HASH_FOREACH_END();
    print_names("PHP Modules", &names);
    zend_llist_position position;
    for (zend_extension *e = zend_llist_get_first_ex(&zend_extensions, &position); e;
         e = zend_llist_get_next_ex(&zend_extensions, &position)) {
        add_name(&names, e->name);
    }
    print_names("Zend Modules", &names);
    zend_hash_destroy(&names);
    php_request_shutdown(NULL);
}

bool shim_print_info(void)
{
    if (!print_begin()) {
        return false;
    }
    php_print_info(0xFFFFFFFF);
    php_request_shutdown(NULL);
    return true;
}
