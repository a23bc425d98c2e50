#include "shim.h"
#include "directory_ini.h"

#include <signal.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include <php.h>
#include <SAPI.h>
#include <php_globals.h>
#include <php_ini.h>
#include <php_main.h>
#include <php_output.h>
#include <php_variables.h>
#include <fopen_wrappers.h>
#include <ext/standard/basic_functions.h>
#include <ext/standard/dl.h>
#include <ext/standard/head.h>
#include <ext/standard/info.h>
#include <zend_ini.h>
#include <zend_ini_scanner.h>
#include <zend_modules.h>
#include <zend_signal.h>
#include <zend_stream.h>
#include <rfc1867.h>

#if defined(ZTS) && ZTS
# error "php-pool needs a PHP that is not thread-safe (NTS), as Debian's is"
#endif

static const struct shim_callbacks *rust;

/* Module settings: php.ini's cgi.* and fastcgi.*, under the names that php-fpm's users have in their files. */
static struct {
    bool rfc2616_headers, nph, fix_pathinfo, force_redirect, discard_path, logging;
    char *redirect_status_env, *error_header, *fpm_config;
} cgi;

/* Of the request that runs. */
static struct {
    const struct shim_request *request;
    bool retire;  /* this process was changed for good */
    bool running; /* the script has begun */
    bool ended;   /* the end of the answer has been seen to */
    bool limit_shown; /* in the place of max_execution_time, for a message */
} now;

static void log_text(enum shim_level level, const char *text)
{
    rust->log(level, false, text, strlen(text));
}

/* ---------------------------------------------------------------- output */

static size_t write_output(const char *text, size_t length)
{
    if (length > 0 && !rust->write(text, length)) {
        php_handle_aborted_connection(); /* ends the script, unless it ignores user aborts */
    }
    return length;
}

static void flush_output(void *context)
{
    (void) context;
#if PHP_VERSION_ID >= 80400
    sapi_send_headers(); /* before 8.4 php-fpm sends none before there is a body: a status may follow yet */
#endif
    if (!rust->flush()) {
        php_handle_aborted_connection();
    }
}

/* The phrases that php-fpm knows: another code stands alone. */
static const char *reason_of(int status)
{
    static const struct { int status; const char *reason; } known[] = {
        {100, "Continue"}, {101, "Switching Protocols"},
        {200, "OK"}, {201, "Created"}, {202, "Accepted"}, {203, "Non-Authoritative Information"}, {204, "No Content"},
        {205, "Reset Content"}, {206, "Partial Content"},
        {300, "Multiple Choices"}, {301, "Moved Permanently"}, {302, "Found"}, {303, "See Other"},
        {304, "Not Modified"}, {305, "Use Proxy"}, {307, "Temporary Redirect"}, {308, "Permanent Redirect"},
        {400, "Bad Request"}, {401, "Unauthorized"}, {402, "Payment Required"}, {403, "Forbidden"},
        {404, "Not Found"}, {405, "Method Not Allowed"}, {406, "Not Acceptable"},
        {407, "Proxy Authentication Required"}, {408, "Request Timeout"}, {409, "Conflict"}, {410, "Gone"},
        {411, "Length Required"}, {412, "Precondition Failed"}, {413, "Request Entity Too Large"},
        {414, "Request-URI Too Long"}, {415, "Unsupported Media Type"}, {416, "Requested Range Not Satisfiable"},
        {417, "Expectation Failed"}, {426, "Upgrade Required"}, {428, "Precondition Required"},
        {429, "Too Many Requests"}, {431, "Request Header Fields Too Large"}, {451, "Unavailable For Legal Reasons"},
        {500, "Internal Server Error"}, {501, "Not Implemented"}, {502, "Bad Gateway"}, {503, "Service Unavailable"},
        {504, "Gateway Timeout"}, {505, "HTTP Version Not Supported"}, {506, "Variant Also Negotiates"},
        {511, "Network Authentication Required"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (known[i].status == status) {
            return known[i].reason;
        }
    }
    return NULL;
}

static bool begins_with(const char *text, const char *prefix)
{
    return strncasecmp(text, prefix, strlen(prefix)) == 0;
}

/* A line of at most 1,023 bytes, as php-fpm cuts the status line. */
static void write_line(const char *text, size_t length)
{
    if (length > 1023) {
        length = 1023;
    }
    rust->write(text, length);
    rust->write("\r\n", 2);
}

static int send_headers(sapi_headers_struct *headers)
{
    if (SG(request_info).no_headers) {
        return SAPI_HEADER_SENT_SUCCESSFULLY;
    }
    zend_llist_position position;
    sapi_header_struct *header;
    bool status_sent = false; /* and with it every Status: header of the script is superfluous */
    int status = SG(sapi_headers).http_response_code;

    if (cgi.nph || status != 200) {
        const char *line = SG(sapi_headers).http_status_line;
        const char *space = line ? strchr(line, ' ') : NULL;
        char text[1100];
        if (cgi.rfc2616_headers && line) {
            write_line(line, strlen(line));
            status_sent = true;
        } else if (space && space - line >= 5 && begins_with(line, "HTTP/")) {
            status = atoi(space + 1); /* what the client sees, whatever http_response_code() was told later */
            int length = snprintf(text, sizeof text, "Status:%s", space);
            write_line(text, length < (int) sizeof text ? (size_t) length : sizeof text - 1);
            status_sent = true;
        } else {
            bool own = false;
            for (header = zend_llist_get_first_ex(&headers->headers, &position); header;
                 header = zend_llist_get_next_ex(&headers->headers, &position)) {
                own = own || (header->header_len > sizeof "Status:" - 1 && begins_with(header->header, "Status:"));
            }
            if (!own) {
                const char *reason = reason_of(status);
                int length = snprintf(text, sizeof text, reason ? "Status: %d %s" : "Status: %d", status, reason);
                write_line(text, (size_t) length);
                status_sent = true;
            }
        }
    }
    for (header = zend_llist_get_first_ex(&headers->headers, &position); header;
         header = zend_llist_get_next_ex(&headers->headers, &position)) {
        if (header->header_len == 0) {
            continue;
        }
        if (header->header_len > sizeof "Status:" - 1 && begins_with(header->header, "Status:")) {
            if (status_sent) {
                continue;
            }
            status_sent = true;
        } else if (status == 304 && header->header_len > sizeof "Content-Type:" - 1 &&
                   begins_with(header->header, "Content-Type:")) {
            continue;
        }
        rust->write(header->header, header->header_len);
        rust->write("\r\n", 2);
    }
    rust->write("\r\n", 2);
    return SAPI_HEADER_SENT_SUCCESSFULLY;
}

/* ---------------------------------------------------------------- input */

static size_t read_post(char *buffer, size_t length)
{
    int cut = 0;
    size_t count = rust->read_body(buffer, length, &cut);
    /* What a script reads must not look like the whole when it is not. (At start-up PHP reads a POST's body before there is
     * a script; that is answered instead of being run.) */
    if (cut && now.running) {
        if (!SG(headers_sent)) {
            SG(sapi_headers).http_response_code = cut;
        }
        php_handle_aborted_connection();
    }
    return count;
}

static char *read_cookies(void)
{
    return now.request ? (char *) now.request->cookies : NULL;
}

static char *get_env(const char *name, size_t length)
{
    return (char *) rust->param(name, length);
}

static void register_variable(const char *name, const char *value, size_t length, zval *array)
{
    char *text = (char *) value; /* the filter may put another string there */
    /* For $_SERVER the filter extension keeps what filter_input() shows, and puts the variable there itself. */
    bool server = array == &PG(http_globals)[TRACK_VARS_SERVER];
    if (!server || sapi_module.input_filter(PARSE_SERVER, name, &text, length, &length)) {
        php_register_variable_safe(name, text, length, array);
    }
}

static bool is_hidden(const struct shim_param *param)
{
    return param->name_len == 10 && memcmp(param->name, "HTTP_PROXY", 10) == 0; /* httpoxy */
}

static void (*import_process_environment)(zval *array);

/* Where a PHP has it, what $_ENV and getenv() without a name go through; declared again, as older headers lack it. */
extern void (*php_load_environment_variables)(zval *array) __attribute__((weak));

/* $_SERVER, $_ENV and getenv() without a name: the process's environment, then the parameters, the last one first. */
static void import_environment(zval *array)
{
    import_process_environment(array);
    size_t count;
    const struct shim_param *params = rust->params(&count);
    while (count-- > 0) {
        if (!is_hidden(&params[count])) {
            register_variable(params[count].name, params[count].value, params[count].value_len, array);
        }
    }
}

static void register_server_variables(zval *array)
{
    import_environment(array);
    const char *uri = now.request && now.request->uri ? now.request->uri : "";
    const char *path_info = cgi.fix_pathinfo ? rust->param("PATH_INFO", 9) : NULL;
    if (path_info) {
        char *self;
        size_t length = spprintf(&self, 0, "%s%s", uri, path_info);
        register_variable("PHP_SELF", self, length, array);
        efree(self);
    } else {
        register_variable("PHP_SELF", uri, strlen(uri), array);
    }
}

/* ---------------------------------------------------------------- life of a request */

/* Early in php_request_startup, when a POST's body has been read. */
static int activate(void)
{
    if (SG(server_context)) {
        shim_activate_ini(SG(request_info).path_translated, rust->param("DOCUMENT_ROOT", 13), rust->param("SERVER_NAME", 11));
    }
    return SUCCESS;
}

/* Late in php_request_shutdown, after every extension's: sessions are written, nothing more can be printed. */
static int deactivate(void)
{
    if (SG(sapi_started)) {
        now.ended = true;
        rust->finish(false);
    }
    return SUCCESS;
}

static void log_message(const char *message, int priority)
{
    (void) priority; /* php-fpm's users know all of PHP's messages as NOTICE */
    rust->log(SHIM_NOTICE, true, message, strlen(message));
}

/* This request changes its process for good: it serves no other, and nothing that it compiles is kept, as opcache compiles what
 * exists and what does not into scripts. */
static void retire(void)
{
    now.retire = true;
    zend_string *key = zend_string_init("opcache.enable", sizeof "opcache.enable" - 1, 0);
    zend_string *off = zend_string_init("0", 1, 0);
    zend_alter_ini_entry_ex(key, off, ZEND_INI_USER, ZEND_INI_STAGE_ACTIVATE, 1);
    zend_string_release(off);
    zend_string_release(key);
}

static void change(const char *name, size_t length, const char *value, bool admin)
{
    if (strcmp(name, "extension") == 0) {
        retire();
        shim_load_extension(value);
        return;
    }
    if (rust->is_admin_value(name, length)) {
        char *text;
        spprintf(&text, 0, "Passing INI directive through FastCGI: '%s' is fixed by php_admin_value", name);
        log_text(SHIM_ERROR, text);
        efree(text);
        return;
    }
    bool functions = strcmp(name, "disable_functions") == 0;
    if (functions || strcmp(name, "disable_classes") == 0) {
        retire(); /* what is disabled cannot be enabled again */
        shim_disable(value, !functions);
    }
    zend_string *key = zend_string_init(name, length, 0);
    zend_string *text = zend_string_init(value, strlen(value), 0);
    /* Kept among the directives that PHP itself restores when the request ends. */
    if (zend_alter_ini_entry_ex(key, text, admin ? ZEND_INI_SYSTEM : ZEND_INI_USER, ZEND_INI_STAGE_ACTIVATE, 1) == FAILURE) {
        char *message;
        spprintf(&message, 0, "Passing INI directive through FastCGI: unable to set '%s'", name);
        log_text(SHIM_ERROR, message);
        efree(message);
    } else {
        zend_ini_entry *entry = zend_hash_find_ptr(EG(ini_directives), key);
        /* Of a setting that only the system can change, opcache compiles the value into scripts, for all requests. Any other
         * bit keeps it from that; PHP puts the old ones back with the old value. */
        if (entry && entry->modifiable == ZEND_INI_SYSTEM) {
            entry->modifiable |= 1 << 3;
        }
    }
    zend_string_release(text);
    zend_string_release(key);
}

static void on_ini_line(zval *name, zval *value, zval *index, int kind, void *admin)
{
    (void) index;
    if (kind != ZEND_INI_PARSER_ENTRY || !name) {
        log_text(SHIM_ERROR, "Passing INI directive through FastCGI: only classic entries are allowed");
    } else if (Z_STRLEN_P(name) == 0) {
        log_text(SHIM_ERROR, "Passing INI directive through FastCGI: empty key");
    } else if (!value) {
        char *text;
        spprintf(&text, 0, "Passing INI directive through FastCGI: empty value for key '%s'", Z_STRVAL_P(name));
        log_text(SHIM_ERROR, text);
        efree(text);
    } else {
        change(Z_STRVAL_P(name), Z_STRLEN_P(name), Z_STRVAL_P(value), admin != NULL);
    }
}

/* PHP_VALUE and PHP_ADMIN_VALUE: for this request alone. */
static void apply_ini_lines(const char *lines, bool admin)
{
    if (!lines || !*lines) {
        return;
    }
    static char yes;
    size_t length = strlen(lines);
    char *text = emalloc(length + 2);
    memcpy(text, lines, length);
    memcpy(text + length, "\n", 2);
    zend_parse_ini_string(text, 1, ZEND_INI_SCANNER_NORMAL, (zend_ini_parser_cb_t) on_ini_line, admin ? &yes : NULL);
    efree(text);
}

static void send_page(const struct shim_page *page)
{
    SG(sapi_headers).http_response_code = page->status;
    for (size_t i = 0; i < page->header_count; i++) {
        char *line;
        const struct shim_param *header = &page->headers[i];
        size_t length = spprintf(&line, 0, "%.*s: %.*s", (int) header->name_len, header->name, (int) header->value_len,
                                 header->value);
        sapi_add_header_ex(line, length, false, true);
    }
    PHPWRITE(page->body, page->body_len);
}

static void send_error(int status, const char *text)
{
    struct shim_page page = {.status = status, .body = text, .body_len = strlen(text)};
    send_page(&page);
}

static void run_script(void)
{
    const char *path = SG(request_info).path_translated;
    if (!rust->may_run(path, strlen(path))) {
        char *text;
        spprintf(&text, 0, "Access to the script '%s' has been denied (see security.limit_extensions)", path);
        log_text(SHIM_NOTICE, text);
        efree(text);
        send_error(403, "Access denied.\n");
        return;
    }
    zend_file_handle file;
    char *asked = estrdup(path);
    errno = ENOENT; /* not every failure sets it */
    if (!*asked || php_fopen_primary_script(&file) == FAILURE) {
        int error = errno;
        char *text;
        spprintf(&text, 0, "Unable to open primary script: %s (%s)", asked, strerror(error));
        log_text(SHIM_ERROR, text);
        efree(text);
        efree(asked);
        if (error == EACCES) {
            send_error(403, "Access denied.\n");
        } else {
            send_error(404, "No input file specified.\n");
        }
        return;
    }
    efree(asked);
    /* With doc_root or user_dir another file is run than the one that was asked for. */
    const zend_string *running = file.opened_path ? file.opened_path : file.filename;
    bool elsewhere = (PG(doc_root) && *PG(doc_root)) || (PG(user_dir) && *PG(user_dir));
    if (elsewhere && !rust->may_run(ZSTR_VAL(running), ZSTR_LEN(running))) {
        char *text;
        spprintf(&text, 0, "Access to the script '%s' has been denied (see security.limit_extensions)", ZSTR_VAL(running));
        log_text(SHIM_NOTICE, text);
        efree(text);
        zend_destroy_file_handle(&file);
        send_error(403, "Access denied.\n");
        return;
    }
    virtual_chdir_file(ZSTR_VAL(file.filename), rust->enter);
    now.running = true;
    php_execute_script(&file);
    zend_destroy_file_handle(&file);
}

static void answer(void)
{
    struct shim_page page = {0};
    switch (rust->answer(&page)) {
    case SHIM_NOTHING:
        break;
    case SHIM_PAGE:
        send_page(&page);
        break;
    case SHIM_SCRIPT:
        run_script();
        break;
    }
}

static void add_error_header(void)
{
    if (EG(exit_status) == 255 && cgi.error_header && *cgi.error_header && !SG(headers_sent)) {
        sapi_header_line line = {.line = cgi.error_header, .line_len = strlen(cgi.error_header)};
        sapi_header_op(SAPI_HEADER_REPLACE, &line);
    }
}

enum shim_outcome shim_serve(const struct shim_request *request)
{
    now.request = request;
    now.retire = now.running = now.ended = false;
    zend_first_try {
        SG(server_context) = (void *) request; /* not NULL: a request, not module start-up */
        SG(sapi_headers).http_response_code = request->status;
        SG(sapi_headers).http_status_line = NULL;
        SG(request_info).request_method = request->method;
        SG(request_info).query_string = (char *) request->query_string;
        SG(request_info).request_uri = (char *) request->uri;
        SG(request_info).content_type = request->content_type;
        SG(request_info).content_length = request->content_length;
        SG(request_info).path_translated = request->script ? estrdup(request->script) : NULL;
        SG(request_info).proto_num = 1000;
        php_handle_auth_data(request->authorization);
        apply_ini_lines(request->php_value, false);
        apply_ini_lines(request->php_admin_value, true);
        if (php_request_startup() == SUCCESS) {
            EG(exit_status) = 0;
            zend_try {
                answer();
            } zend_end_try();
            add_error_header();
        } else {
            log_text(SHIM_ERROR, "PHP could not be started up for the request");
            SG(sapi_headers).http_response_code = 500;
        }
    } zend_catch {
        log_text(SHIM_ERROR, "PHP gave up outside of the script");
        if (!SG(headers_sent)) {
            SG(sapi_headers).http_response_code = 500;
        }
    } zend_end_try();

    if (!rust->executed(SG(sapi_headers).http_response_code, zend_memory_peak_usage(1))) {
        SG(rfc1867_uploaded_files) = NULL; /* the files are its parent's, not to be deleted with the child */
    }
    if (SG(request_info).path_translated) {
        efree(SG(request_info).path_translated);
        SG(request_info).path_translated = NULL;
    }
    php_request_shutdown(NULL);
    if (!now.ended) {
        rust->finish(false); /* PHP gave up before it came to that: the client must not wait for ever */
    }
    if (now.limit_shown) {
        EG(timeout_seconds) = INI_INT("max_execution_time"); /* what it is again for the next one */
        now.limit_shown = false;
    }
    SG(server_context) = NULL;
    now.request = NULL;
    return now.retire ? SHIM_RETIRE : SHIM_DONE;
}

/* ---------------------------------------------------------------- what scripts can call */

ZEND_BEGIN_ARG_WITH_RETURN_TYPE_INFO_EX(arginfo_finish_request, 0, 0, _IS_BOOL, 0)
ZEND_END_ARG_INFO()

PHP_FUNCTION(fastcgi_finish_request)
{
    ZEND_PARSE_PARAMETERS_NONE();
    if (rust->is_closed()) {
        RETURN_FALSE; /* and what the script buffers since then is its own */
    }
    php_output_end_all();
    php_header();
    rust->finish(true);
    RETURN_TRUE;
}

ZEND_BEGIN_ARG_WITH_RETURN_TYPE_INFO_EX(arginfo_request_headers, 0, 0, IS_ARRAY, 0)
ZEND_END_ARG_INFO()

/* HTTP_X_FOO becomes X-Foo: after the first letter all is lower case but what follows a dash. */
static void add_request_header(zval *array, const struct shim_param *param)
{
    if (param->name_len > 5 && memcmp(param->name, "HTTP_", 5) == 0) {
        size_t length = param->name_len - 5;
        char *name = emalloc(length + 1);
        memcpy(name, param->name + 5, length + 1);
        for (size_t i = 1; i < length; i++) {
            if (name[i] == '_') {
                name[i] = '-';
                i++; /* the next one stays as it is */
            } else if (name[i] >= 'A' && name[i] <= 'Z') {
                name[i] += 'a' - 'A';
            }
        }
        add_assoc_stringl_ex(array, name, length, param->value, param->value_len);
        efree(name);
    } else if (strcmp(param->name, "CONTENT_TYPE") == 0) {
        add_assoc_stringl(array, "Content-Type", param->value, param->value_len);
    } else if (strcmp(param->name, "CONTENT_LENGTH") == 0) {
        add_assoc_stringl(array, "Content-Length", param->value, param->value_len);
    }
}

PHP_FUNCTION(apache_request_headers)
{
    ZEND_PARSE_PARAMETERS_NONE();
    array_init(return_value);
    size_t count;
    const struct shim_param *params = rust->params(&count);
    while (count-- > 0) {
        add_request_header(return_value, &params[count]);
    }
}

ZEND_BEGIN_ARG_WITH_RETURN_TYPE_MASK_EX(arginfo_get_status, 0, 0, MAY_BE_ARRAY | MAY_BE_FALSE)
ZEND_END_ARG_INFO()

static const struct shim_field *fill_array(zval *array, const struct shim_field *at, const struct shim_field *end)
{
    for (; at < end && at->kind != SHIM_END; at++) {
        zval value;
        switch (at->kind) {
        case SHIM_INT: ZVAL_LONG(&value, at->number); break;
        case SHIM_FLOAT: ZVAL_DOUBLE(&value, at->real); break;
        case SHIM_STRING: ZVAL_STRINGL(&value, at->string, at->string_len); break;
        default: {
            const struct shim_field *begin = at;
            array_init(&value);
            at = fill_array(&value, at + 1, end);
            if (begin->key) {
                zend_hash_str_update(Z_ARRVAL_P(array), begin->key, begin->key_len, &value);
            } else {
                zend_hash_next_index_insert(Z_ARRVAL_P(array), &value);
            }
            continue;
        }
        }
        zend_hash_str_update(Z_ARRVAL_P(array), at->key, at->key_len, &value);
    }
    return at;
}

PHP_FUNCTION(fpm_get_status)
{
    ZEND_PARSE_PARAMETERS_NONE();
    size_t count;
    const struct shim_field *fields = rust->pool_status(&count);
    if (!fields) {
        RETURN_FALSE;
    }
    array_init(return_value);
    fill_array(return_value, fields, fields + count);
}

static const zend_function_entry functions[] = {
    PHP_FE(fastcgi_finish_request, arginfo_finish_request)
    PHP_FE(apache_request_headers, arginfo_request_headers)
    PHP_FALIAS(getallheaders, apache_request_headers, arginfo_request_headers)
    PHP_FE(fpm_get_status, arginfo_get_status)
    PHP_FE_END
};

static ZEND_INI_MH(on_bool)
{
    (void) entry, (void) mh_arg2, (void) mh_arg3, (void) stage;
    *(bool *) ((char *) &cgi + (size_t) mh_arg1) = zend_ini_parse_bool(new_value);
    return SUCCESS;
}

static ZEND_INI_MH(on_string)
{
    (void) entry, (void) mh_arg2, (void) mh_arg3, (void) stage;
    *(char **) ((char *) &cgi + (size_t) mh_arg1) = new_value ? ZSTR_VAL(new_value) : NULL;
    return SUCCESS;
}

#define AT(field) ((void *) (size_t) ((char *) &cgi.field - (char *) &cgi))
PHP_INI_BEGIN()
    PHP_INI_ENTRY1_EX("cgi.rfc2616_headers", "0", PHP_INI_ALL, on_bool, AT(rfc2616_headers), zend_ini_boolean_displayer_cb)
    PHP_INI_ENTRY1_EX("cgi.nph", "0", PHP_INI_ALL, on_bool, AT(nph), zend_ini_boolean_displayer_cb)
    PHP_INI_ENTRY1_EX("cgi.force_redirect", "1", PHP_INI_SYSTEM, on_bool, AT(force_redirect), zend_ini_boolean_displayer_cb)
    PHP_INI_ENTRY1("cgi.redirect_status_env", NULL, PHP_INI_SYSTEM, on_string, AT(redirect_status_env))
    PHP_INI_ENTRY1_EX("cgi.fix_pathinfo", "1", PHP_INI_SYSTEM, on_bool, AT(fix_pathinfo), zend_ini_boolean_displayer_cb)
    PHP_INI_ENTRY1_EX("cgi.discard_path", "0", PHP_INI_SYSTEM, on_bool, AT(discard_path), zend_ini_boolean_displayer_cb)
    PHP_INI_ENTRY1_EX("fastcgi.logging", "1", PHP_INI_SYSTEM, on_bool, AT(logging), zend_ini_boolean_displayer_cb)
    PHP_INI_ENTRY1("fastcgi.error_header", NULL, PHP_INI_SYSTEM, on_string, AT(error_header))
    PHP_INI_ENTRY1("fpm.config", NULL, PHP_INI_SYSTEM, on_string, AT(fpm_config))
PHP_INI_END()

static PHP_MINIT_FUNCTION(cgi)
{
    (void) type;
    REGISTER_INI_ENTRIES();
    return SUCCESS;
}

static PHP_MSHUTDOWN_FUNCTION(cgi)
{
    (void) type;
    UNREGISTER_INI_ENTRIES();
    return SUCCESS;
}

/* Shutdown functions and destructors have read what they wanted of the body. PHP would read all the rest of it now, however long its
 * client takes. */
static PHP_RSHUTDOWN_FUNCTION(cgi)
{
    (void) type, (void) module_number;
    SG(post_read) = 1;
    return SUCCESS;
}

static PHP_MINFO_FUNCTION(cgi)
{
    (void) zend_module;
    php_info_print_table_start();
    php_info_print_table_row(2, "php-fpm", "active");
    php_info_print_table_row(2, "php-pool", PHP_POOL_VERSION);
    php_info_print_table_end();
    DISPLAY_INI_ENTRIES();
}

static zend_module_entry module = {
    STANDARD_MODULE_HEADER, "cgi-fcgi", functions, PHP_MINIT(cgi), PHP_MSHUTDOWN(cgi), NULL, PHP_RSHUTDOWN(cgi), PHP_MINFO(cgi),
    PHP_VERSION, STANDARD_MODULE_PROPERTIES
};

/* ---------------------------------------------------------------- start and stop */

static int start_module(sapi_module_struct *sapi)
{
#if PHP_VERSION_ID < 80200
    return php_module_startup(sapi, &module, 1);
#else
    return php_module_startup(sapi, &module);
#endif
}

static sapi_module_struct sapi = {
    .name = "fpm-fcgi",
    .pretty_name = "FPM/FastCGI",
    .startup = start_module,
    .shutdown = php_module_shutdown_wrapper,
    .activate = activate,
    .deactivate = deactivate,
    .ub_write = write_output,
    .flush = flush_output,
    .getenv = get_env,
    .sapi_error = php_error,
    .send_headers = send_headers,
    .read_post = read_post,
    .read_cookies = read_cookies,
    .register_server_variables = register_server_variables,
    .log_message = log_message,
};

void shim_init(const struct shim_callbacks *callbacks)
{
    rust = callbacks;
    signal(SIGPIPE, SIG_IGN);
    zend_signal_startup();
    sapi_startup(&sapi);
}

bool shim_start(const struct shim_start *start)
{
    sapi.php_ini_path_override = (char *) start->ini_path;
    sapi.php_ini_ignore = start->no_ini;
    sapi.php_ini_ignore_cwd = 1;
    sapi.ini_entries = (char *) start->ini_entries;
    sapi.executable_location = (char *) start->executable;
    bool started = sapi.startup(&sapi) != FAILURE;
    fflush(NULL); /* what PHP displays at its start is in C's buffers, and every worker's end would say it once more */
    if (!started) {
        return false;
    }
    if (start->extended_info) {
        CG(compiler_options) |= ZEND_COMPILE_EXTENDED_INFO;
    }
    import_process_environment = php_import_environment_variables;
    php_import_environment_variables = import_environment;
    if (&php_load_environment_variables) {
        php_load_environment_variables = import_environment;
    }
    SG(options) |= SAPI_OPTION_NO_CHDIR; /* we go to the script's folder ourselves: one call, not three */
#ifdef ZEND_SIGNALS
    SIGG(reset) = 0; /* our own handlers only set flags, there is nothing to defer */
#endif
    return true;
}

void shim_stop(void)
{
    zend_try {
        php_module_shutdown();
        sapi_shutdown();
    } zend_end_try();
}

int shim_exit_status(void)
{
    return EG(exit_status);
}

bool shim_set_ini(const char *name, size_t name_len, const char *value, size_t value_len, bool admin)
{
    zend_ini_entry *entry = zend_hash_str_find_ptr(EG(ini_directives), name, name_len);
    if (!entry) {
        return false;
    }
    zend_string *text = zend_string_init(value, value_len, 1);
#if PHP_VERSION_ID >= 80400
    /* Pool files are read without PHP: E_ALL still has the bit of E_STRICT there. A number does not get longer by losing it. */
    if (zend_string_equals_literal(entry->name, "error_reporting") && value_len > 0
        && strspn(ZSTR_VAL(text), "0123456789") == value_len) {
        ZSTR_LEN(text) = sprintf(ZSTR_VAL(text), ZEND_LONG_FMT, ZEND_STRTOL(ZSTR_VAL(text), NULL, 10) & E_ALL);
    }
#endif
    bool set = false;
    zend_first_try {
        set = !entry->on_modify
            || entry->on_modify(entry, text, entry->mh_arg1, entry->mh_arg2, entry->mh_arg3, ZEND_INI_STAGE_ACTIVATE) == SUCCESS;
    } zend_end_try();
    if (set) {
        entry->value = text; /* the old one may be in shared memory: it is left where it is */
        if (admin) {
            entry->modifiable = ZEND_INI_SYSTEM;
        }
    } else {
        zend_string_release(text);
    }
    return true;
}

bool shim_load_extension(const char *name)
{
    volatile bool loaded = false;
    zend_interned_strings_switch_storage(0); /* its strings live as long as the process, as if it had been there at start-up */
    zend_first_try {
        loaded = php_load_extension(name, MODULE_PERSISTENT, 1) == SUCCESS;
    } zend_end_try();
    zend_collect_module_handlers(); /* its request handlers among those of the others */
    zend_interned_strings_switch_storage(1);
    return loaded;
}

void shim_disable(const char *names, bool classes)
{
    char *list = strdup(names), *rest = list, *name;
    while ((name = strtok_r(rest, ", ", &rest))) {
        if (classes) {
            zend_disable_class(name, strlen(name));
        } else {
            zend_disable_functions(name);
        }
    }
    free(list);
}

void shim_settings(struct shim_cgi *out)
{
    out->fix_pathinfo = cgi.fix_pathinfo;
    out->discard_path = cgi.discard_path;
    out->decodes_path_info = PHP_VERSION_ID >= 80400;
    out->doc_root = PG(doc_root) && *PG(doc_root) ? PG(doc_root) : NULL;
    /* Without opcache none of these exists, and all are 0. */
    bool looks = INI_BOOL("opcache.validate_timestamps");
    out->revalidate = !INI_BOOL("opcache.enable") ? 0 : looks ? INI_INT("opcache.revalidate_freq") : INT64_MAX;
}

bool shim_logs_to_client(void)
{
    return cgi.logging;
}

bool shim_starts_at_home(void)
{
    /* A session's folder; and what pcov covers where pcov.directory does not say it. */
    return INI_BOOL("session.auto_start") || zend_hash_str_exists(&module_registry, ZEND_STRL("pcov"));
}

bool shim_resolved_before(const char *path, size_t len)
{
    return realpath_cache_lookup(path, len, time(NULL)) != NULL;
}

bool shim_resolves(const char *path)
{
    char resolved[MAXPATHLEN];
    volatile bool found = false;
    zend_first_try {
        found = tsrm_realpath(path, resolved) != NULL;
    } zend_end_try();
    return found;
}

const char *shim_response_header(const char *name, size_t name_len, size_t *length)
{
    zend_llist_position position;
    for (sapi_header_struct *header = zend_llist_get_first_ex(&SG(sapi_headers).headers, &position); header;
         header = zend_llist_get_next_ex(&SG(sapi_headers).headers, &position)) {
        if (header->header_len >= name_len + 2 && memcmp(header->header, name, name_len) == 0
            && memcmp(header->header + name_len, ": ", 2) == 0) {
            *length = header->header_len - name_len - 2;
            return header->header + name_len + 2;
        }
    }
    return NULL;
}

void shim_show_time_limit(int64_t seconds)
{
    now.limit_shown = true;
    EG(timeout_seconds) = seconds;
}

const char *shim_php_version(void)
{
    return PHP_VERSION;
}
