/* The engine's floor: one script, started up, run and shut down again and again, without a socket and with nothing that is
 * not PHP's own, all knobs set that cost no behaviour. Whatever serves PHP by libphp costs at least this.
 *
 *   engine PHP.INI SECONDS SCRIPT METHOD CONTENT_TYPE BODY_FILE|- [NAME=VALUE…]
 *
 * Prints the requests, the seconds and the CPU seconds of them, and the bytes of the last answer. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <php.h>
#include <SAPI.h>
#include <php_main.h>
#include <php_variables.h>
#include <zend_signal.h>
#include <zend_stream.h>

static char **params;
static int param_count;
static char *body;
static size_t body_length, body_read, written;

/* The CPU timer is armed once and for all; its handler and mask are set once. */
int setitimer(__itimer_which_t which, const struct itimerval *new, struct itimerval *old)
{
    (void) which, (void) new, (void) old;
    return 0;
}

int sigprocmask(int how, const sigset_t *new, sigset_t *old)
{
    (void) how, (void) new, (void) old;
    return 0;
}

int sigaction(int signal, const struct sigaction *new, struct sigaction *old)
{
    (void) signal, (void) new, (void) old;
    return 0;
}

static size_t write_output(const char *text, size_t length)
{
    (void) text;
    written += length;
    return length;
}

static void flush_output(void *context)
{
    (void) context;
}

static int send_headers(sapi_headers_struct *headers)
{
    zend_llist_position position;
    for (sapi_header_struct *header = zend_llist_get_first_ex(&headers->headers, &position); header;
         header = zend_llist_get_next_ex(&headers->headers, &position)) {
        written += header->header_len + 2;
    }
    written += 2;
    return SAPI_HEADER_SENT_SUCCESSFULLY;
}

static size_t read_post(char *buffer, size_t length)
{
    size_t left = body_length - body_read;
    length = length < left ? length : left;
    memcpy(buffer, body + body_read, length);
    body_read += length;
    return length;
}

static char *read_cookies(void)
{
    return NULL;
}

static void register_variables(zval *array)
{
    for (int i = param_count - 1; i >= 0; i--) {
        char *value = strchr(params[i], '=');
        char name[256];
        snprintf(name, sizeof name, "%.*s", (int) (value - params[i]), params[i]);
        value++;
        size_t length = strlen(value);
        if (sapi_module.input_filter(PARSE_SERVER, name, &value, length, &length)) {
            php_register_variable_safe(name, value, length, array);
        }
    }
    php_register_variable("PHP_SELF", SG(request_info).request_uri, array);
}

static char *get_env(const char *name, size_t length)
{
    for (int i = 0; i < param_count; i++) {
        if (strncmp(params[i], name, length) == 0 && params[i][length] == '=') {
            return params[i] + length + 1;
        }
    }
    return NULL;
}

static void log_message(const char *message, int priority)
{
    (void) priority;
    fprintf(stderr, "%s\n", message);
}

static int start(sapi_module_struct *sapi)
{
    return php_module_startup(sapi, NULL);
}

static sapi_module_struct sapi = {
    .name = "fpm-fcgi",
    .pretty_name = "floor",
    .startup = start,
    .shutdown = php_module_shutdown_wrapper,
    .ub_write = write_output,
    .flush = flush_output,
    .getenv = get_env,
    .sapi_error = php_error,
    .send_headers = send_headers,
    .read_post = read_post,
    .read_cookies = read_cookies,
    .register_server_variables = register_variables,
    .log_message = log_message,
};

static double seconds_of(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double) now.tv_sec + (double) now.tv_nsec / 1e9;
}

static void request(const char *script, const char *method, const char *type)
{
    written = body_read = 0;
    zend_first_try {
        SG(server_context) = (void *) script;
        SG(sapi_headers).http_response_code = 200;
        SG(request_info).request_method = method;
        SG(request_info).query_string = "";
        SG(request_info).request_uri = get_env("SCRIPT_NAME", 11);
        SG(request_info).content_type = type;
        SG(request_info).content_length = (zend_long) body_length;
        SG(request_info).path_translated = estrdup(script);
        SG(request_info).proto_num = 1000;
        if (php_request_startup() == SUCCESS) {
            zend_file_handle file;
            zend_stream_init_filename(&file, script);
            file.primary_script = 1;
            php_execute_script(&file);
            zend_destroy_file_handle(&file);
        }
    } zend_end_try();
    efree(SG(request_info).path_translated);
    SG(request_info).path_translated = NULL;
    php_request_shutdown(NULL);
    SG(server_context) = NULL;
}

int main(int argc, char **argv)
{
    if (argc < 7) {
        return 64;
    }
    double limit = atof(argv[2]);
    const char *script = argv[3], *method = argv[4], *type = argv[5];
    params = argv + 7;
    param_count = argc - 7;
    if (strcmp(argv[6], "-") != 0) {
        FILE *file = fopen(argv[6], "r");
        if (!file) {
            perror(argv[6]);
            return 66;
        }
        fseek(file, 0, SEEK_END);
        body_length = (size_t) ftell(file);
        rewind(file);
        body = malloc(body_length);
        if (fread(body, 1, body_length, file) != body_length) {
            return 66;
        }
        fclose(file);
    }
    signal(SIGPIPE, SIG_IGN);
    zend_signal_startup();
    sapi.php_ini_path_override = argv[1];
    sapi.php_ini_ignore_cwd = 1;
    sapi_startup(&sapi);
    if (sapi.startup(&sapi) == FAILURE) {
        return 70;
    }
    SG(options) |= SAPI_OPTION_NO_CHDIR;
#ifdef ZEND_SIGNALS
    SIGG(reset) = 0;
#endif
    char folder[4096];
    snprintf(folder, sizeof folder, "%s", script);
    *strrchr(folder, '/') = '\0';
    if (chdir(folder) != 0) {
        return 66;
    }
    for (int i = 0; i < 3; i++) {
        request(script, method, type);
    }
    unsigned long count = 0;
    double begin = seconds_of(CLOCK_MONOTONIC), cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID), now;
    do {
        for (int i = 0; i < 16; i++) {
            request(script, method, type);
            count++;
            if (body_length > 100000) {
                break;
            }
        }
        now = seconds_of(CLOCK_MONOTONIC);
    } while (now - begin < limit);
    printf("%lu %.9f %.9f %zu\n", count, now - begin, seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu, written);
    fflush(stdout);
    _exit(0);
}
