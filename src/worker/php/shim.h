/* Everything that crosses between Rust and PHP.
 *
 * PHP's globals, zval accessors and zend_try are macros, and its longjmp must not cross a Rust frame: what needs one of
 * these is here, the rest is Rust. A call from Rust never lets a bailout escape; a callback into Rust never bails out. */
#ifndef PHP_POOL_SHIM_H
#define PHP_POOL_SHIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A FastCGI parameter; both strings end in NUL and contain none. */
struct shim_param {
    const char *name;
    size_t name_len;
    const char *value;
    size_t value_len;
};

/* One element of fpm_get_status()'s array, which is sent flat. */
enum shim_field_kind { SHIM_INT, SHIM_FLOAT, SHIM_STRING, SHIM_BEGIN, SHIM_END };
struct shim_field {
    enum shim_field_kind kind;
    const char *key; /* NULL: the next index */
    size_t key_len;
    int64_t number;
    double real;
    const char *string;
    size_t string_len;
};

/* What a request is answered with. */
enum shim_answer {
    SHIM_SCRIPT,    /* the script of the request */
    SHIM_NOTHING,   /* headers alone */
    SHIM_PAGE,      /* page: a built-in page, or an error */
};
struct shim_page {
    int status;
    const struct shim_param *headers; /* name: value, in order */
    size_t header_count;
    const char *body;
    size_t body_len;
};

/* Severities, php-fpm's. */
enum shim_level { SHIM_DEBUG, SHIM_NOTICE, SHIM_WARNING, SHIM_ERROR, SHIM_ALERT };

/* What PHP asks of us while a request runs. */
struct shim_callbacks {
    /* Appends to the response; false: the client is gone. */
    bool (*write)(const char *data, size_t length);
    /* Sends what was written; false: the client is gone. */
    bool (*flush)(void);
    /* Fills the buffer from the body; fewer bytes only at its end, or where it ended before its time: then `cut` is the HTTP
     * status that this deserves. */
    size_t (*read_body)(char *buffer, size_t length, int *cut);
    /* All parameters in the order of arrival. */
    const struct shim_param *(*params)(size_t *count);
    /* One parameter, or NULL. */
    const char *(*param)(const char *name, size_t length);
    /* A line for the log and, where enabled, for FCGI_STDERR. */
    void (*log)(enum shim_level level, bool from_php, const char *text, size_t length);
    /* Ends the FastCGI request; `goes_on`: the script does not end with it. */
    void (*finish)(bool goes_on);
    /* Whether it has ended, and its connection is not kept. */
    bool (*is_closed)(void);
    /* PHP is started up for the request, its body read where PHP reads it at once: what now? */
    enum shim_answer (*answer)(struct shim_page *page);
    /* Whether security.limit_extensions lets this path be run. */
    bool (*may_run)(const char *path, size_t length);
    /* chdir() to the script's folder. */
    int (*enter)(const char *folder);
    /* Whether the pool fixes this ini setting (php_admin_value). */
    bool (*is_admin_value)(const char *name, size_t length);
    /* The script (or page) is done; what is left is shutdown functions, destructors, the response's tail. False: this is a
     * child that the script has forked. */
    bool (*executed)(int status, uint64_t peak_memory);
    /* The state of the pool for fpm_get_status(); NULL: not to be had. */
    const struct shim_field *(*pool_status)(size_t *count);
};

/* Where PHP's allocator takes memory in large pieces from, aligned to one of its chunks: zend_mm_handlers. */
struct shim_memory {
    void *(*take)(size_t size); /* NULL: there is none */
    void (*give_back)(void *at, size_t size);
    bool (*truncate)(void *at, size_t old_size, size_t new_size);
    bool (*extend)(void *at, size_t old_size, size_t new_size); /* in its place, or not at all */
};

/* How PHP is started. Strings may be NULL. */
struct shim_start {
    const char *ini_path;
    bool no_ini;
    const char *ini_entries;
    const char *executable;
    bool extended_info;
};

/* Values of our own ini settings. */
struct shim_cgi {
    bool fix_pathinfo;
    bool discard_path;
    bool decodes_path_info; /* not a setting, but what this PHP's php-fpm does */
    const char *doc_root;   /* PG(doc_root); NULL when empty */
    int64_t revalidate;   /* seconds for which PHP takes a file for what it was: opcache's, or 0 */
};

struct shim_request {
    const char *method;          /* NULL: none was sent */
    const char *query_string;    /* NULL: none */
    const char *uri;             /* what becomes PHP_SELF; NULL: none */
    const char *script;          /* NULL: there is no script */
    const char *content_type;    /* "" when there is none */
    const char *cookies;         /* NULL: none */
    const char *authorization;   /* NULL: none */
    const char *php_value;       /* ini lines, NULL: none */
    const char *php_admin_value; /* likewise */
    int64_t content_length;
    int status;                  /* 200, or what is known already */
};

/* What became of a request. */
enum shim_outcome {
    SHIM_DONE,
    SHIM_RETIRE,  /* done, but this process must not serve another (it was changed for good) */
};

/* Addresses and offsets by which another process reads a backtrace; explained, in the same order, by TraceLayout in
 * src/scoreboard/layout.rs. */
struct shim_trace_layout {
    uint64_t current_execute_data, exception_op, exception_op_size, opline_before_exception;
    uint64_t server_context, request_script, request_method, request_uri, request_query;
    uint64_t generator_class;
    uint64_t execute_data_opline, execute_data_func, execute_data_this, execute_data_type_info, execute_data_num_args;
    uint64_t execute_data_prev, execute_data_arguments;
    uint64_t zval_size, zval_type;
    uint64_t function_type, function_name, function_scope;
    uint64_t op_array_num_args, op_array_filename;
    uint64_t op_lineno;
    uint64_t string_type_info, string_len, string_val;
    uint64_t class_name, object_class;
    uint64_t generator_execute_data, generator_parent;
    uint64_t zygote;
};

/* Before anything else; the callbacks must live for ever. */
void shim_init(const struct shim_callbacks *callbacks);
/* Module start-up: php.ini, extensions, opcache, preload. */
bool shim_start(const struct shim_start *start);
/* From now on PHP's allocator takes from there (for ever); false: it does not. */
bool shim_use_memory(const struct shim_memory *memory);
void shim_stop(void);
/* What exit() was called with; 255 after a fatal error. */
int shim_exit_status(void);
/* Sets an ini value as the pool's configuration does; admin: scripts cannot change it. */
bool shim_set_ini(const char *name, size_t name_len, const char *value, size_t value_len, bool admin);
/* Loads an extension into this process. */
bool shim_load_extension(const char *name);
void shim_disable(const char *names, bool classes);
void shim_settings(struct shim_cgi *out);
/* fastcgi.logging, as it is at this moment: a request may set it. */
bool shim_logs_to_client(void);
/* Whether something looks at the working folder while a request starts, before its script does. */
bool shim_starts_at_home(void);
/* Whether PHP's cache has the path as one that resolves. */
bool shim_resolved_before(const char *path, size_t len);
/* realpath() by PHP's cache; false: it does not resolve. */
bool shim_resolves(const char *path);
/* Calls `each` with the path of each script in opcache, what was used most first, until that says no. Needs a request of its
 * own, and so does shim_compile: for a process that serves none. */
void shim_each_compiled(bool (*each)(void *context, const char *path, size_t length), void *context);
/* Compiles a file into opcache, and runs nothing of it. */
void shim_compile(const char *path);
enum shim_outcome shim_serve(const struct shim_request *request);
/* The value of the response's first header of exactly this name, or NULL. */
const char *shim_response_header(const char *name, size_t name_len, size_t *length);
/* What the message of PHP's time-out names in this request; safe in a signal handler. */
void shim_show_time_limit(int64_t seconds);
void shim_trace(struct shim_trace_layout *out);
const char *shim_php_version(void);
/* php -v, -m and -i. */
void shim_print_version(void);
void shim_print_modules(void);
bool shim_print_info(void);

#endif
