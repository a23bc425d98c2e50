/* The attacker's PHP extension: what PHP itself has no word for. Loaded into the villain's pool by the tests, never shipped.
 *
 * Its module start-up runs where extensions are loaded: in php-pool's zygote, which has the control channel at descriptor 3,
 * or in php-fpm's root master. `attack.report` (a file) and `attack.zygote` (a deed) in php.ini say what it does there. */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <netinet/in.h>
#include <unistd.h>

#include <php.h>
#include <php_ini.h>

/* ---------------------------------------------------------------- tools */

static int send_message(int channel, const void *bytes, size_t length, const int *fds, size_t count, int flags)
{
    char control[CMSG_SPACE(sizeof(int) * 253)] = {0};
    struct iovec part = {(void *) bytes, length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count > 0) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * count);
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        *rights = (struct cmsghdr) {CMSG_LEN(sizeof(int) * count), SOL_SOCKET, SCM_RIGHTS};
        memcpy(CMSG_DATA(rights), fds, sizeof(int) * count);
    }
    return sendmsg(channel, &message, flags) < 0 ? errno : 0;
}

/* A connection whose close() waits until its peer, which is this process too, has read all of it. */
static int lingering(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), ours = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (bind(listener, (void *) &address, length) || listen(listener, 1) || getsockname(listener, (void *) &address, &length)) {
        return -1;
    }
    connect(ours, (void *) &address, length);
    if (accept(listener, NULL, NULL) < 0) {
        return -1;
    }
    static char full[1 << 16];
    while (write(ours, full, sizeof full) > 0) {
    }
    struct linger linger = {1, 600};
    setsockopt(ours, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(listener);
    return ours;
}

/* ---------------------------------------------------------------- for scripts */

/* attack_syscall(int $number, int|string ...$arguments): [int $result, int $errno, string ...$strings as they are then] */
PHP_FUNCTION(attack_syscall)
{
    zend_long number;
    zval *list = NULL;
    uint32_t count = 0;
    ZEND_PARSE_PARAMETERS_START(1, 7)
        Z_PARAM_LONG(number)
        Z_PARAM_VARIADIC('*', list, count)
    ZEND_PARSE_PARAMETERS_END();
    long arguments[6] = {0};
    for (uint32_t i = 0; i < count; i++) {
        if (Z_TYPE(list[i]) == IS_STRING) {
            char *copy = emalloc(Z_STRLEN(list[i]) + 1);
            memcpy(copy, Z_STRVAL(list[i]), Z_STRLEN(list[i]) + 1);
            arguments[i] = (long) copy;
        } else {
            arguments[i] = zval_get_long(&list[i]);
        }
    }
    errno = 0;
    long result = syscall(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
    int error = errno;
    array_init(return_value);
    add_next_index_long(return_value, result);
    add_next_index_long(return_value, error);
    for (uint32_t i = 0; i < count; i++) {
        if (Z_TYPE(list[i]) == IS_STRING) {
            add_next_index_stringl(return_value, (char *) arguments[i], Z_STRLEN(list[i]));
        }
    }
}

/* attack_send(int $socket, string $bytes, array $descriptors = []): errno */
PHP_FUNCTION(attack_send)
{
    zend_long channel;
    zend_string *bytes;
    HashTable *list = NULL;
    ZEND_PARSE_PARAMETERS_START(2, 3)
        Z_PARAM_LONG(channel)
        Z_PARAM_STR(bytes)
        Z_PARAM_OPTIONAL
        Z_PARAM_ARRAY_HT(list)
    ZEND_PARSE_PARAMETERS_END();
    int fds[253];
    size_t count = 0;
    zval *value;
    if (list) {
        ZEND_HASH_FOREACH_VAL(list, value) {
            if (count < 253) {
                fds[count++] = (int) zval_get_long(value);
            }
        } ZEND_HASH_FOREACH_END();
    }
    RETURN_LONG(send_message((int) channel, ZSTR_VAL(bytes), ZSTR_LEN(bytes), fds, count, MSG_DONTWAIT | MSG_NOSIGNAL));
}

PHP_FUNCTION(attack_lingering)
{
    ZEND_PARSE_PARAMETERS_NONE();
    RETURN_LONG(lingering());
}

/* attack_sockets(): [descriptor => "listening /path" | "connected" | …] */
PHP_FUNCTION(attack_sockets)
{
    ZEND_PARSE_PARAMETERS_NONE();
    array_init(return_value);
    for (int fd = 0; fd < 256; fd++) {
        struct sockaddr_un address = {0};
        socklen_t length = sizeof address;
        int listens = 0, type = 0;
        socklen_t size = sizeof listens;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size)) {
            continue;
        }
        size = sizeof type;
        getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size);
        getsockname(fd, (void *) &address, &length);
        char text[256];
        snprintf(text, sizeof text, "%s %s %s", listens ? "listening" : "connected",
                 type == SOCK_SEQPACKET ? "seqpacket" : "stream", address.sun_family == AF_UNIX ? address.sun_path : "");
        add_index_string(return_value, fd, text);
    }
}

/* attack_find(string $masked): how often the text, each byte of which is masked with 0x55, stands in readable memory */
PHP_FUNCTION(attack_find)
{
    zend_string *masked;
    ZEND_PARSE_PARAMETERS_START(1, 1)
        Z_PARAM_STR(masked)
    ZEND_PARSE_PARAMETERS_END();
    zend_long found = 0;
    size_t length = ZSTR_LEN(masked);
    FILE *maps = fopen("/proc/self/maps", "r");
    int memory = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    char line[512];
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long begin, end;
        char access;
        if (sscanf(line, "%lx-%lx %c", &begin, &end, &access) != 3 || access != 'r' || strstr(line, "[v")) {
            continue;
        }
        /* A copy by the kernel: a hole in a mapping is an error there, not a crash here. What straddles two copies is missed. */
        static char copy[1 << 20];
        for (unsigned long at = begin; at < end; at += sizeof copy) {
            ssize_t count = pread(memory, copy, end - at < sizeof copy ? end - at : sizeof copy, (off_t) at);
            for (ssize_t i = 0; i + (ssize_t) length <= count; i++) {
                size_t j = 0;
                while (j < length && (copy[i + j] ^ 0x55) == ZSTR_VAL(masked)[j]) {
                    j++;
                }
                found += j == length;
            }
            memset(copy, 0, sizeof copy);
        }
    }
    close(memory);
    if (maps) {
        fclose(maps);
    }
    RETURN_LONG(found);
}

/* Calls `act` on every writable shared mapping that is no longer than `most`. */
static zend_long shared(size_t most, zend_long (*act)(char *begin, size_t length, void *data), void *data)
{
    zend_long sum = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long begin, end;
        char access[5];
        if (sscanf(line, "%lx-%lx %4s", &begin, &end, access) == 3 && access[1] == 'w' && access[3] == 's'
            && end - begin <= most) {
            sum += act((char *) begin, end - begin, data);
        }
    }
    if (maps) {
        fclose(maps);
    }
    return sum;
}

static zend_long fill(char *begin, size_t length, void *byte)
{
    memset(begin, *(int *) byte, length);
    return (zend_long) length;
}

/* attack_fill(int $byte, int $most): fills the shared memory of mappings that are no longer than $most bytes; how much it was */
PHP_FUNCTION(attack_fill)
{
    zend_long byte, most;
    ZEND_PARSE_PARAMETERS_START(2, 2)
        Z_PARAM_LONG(byte)
        Z_PARAM_LONG(most)
    ZEND_PARSE_PARAMETERS_END();
    int value = (int) byte;
    RETURN_LONG(shared((size_t) most, fill, &value));
}

static zend_long patch(char *begin, size_t length, void *data)
{
    zend_string **texts = data;
    zend_long count = 0;
    for (char *at = begin; (at = memmem(at, length - (size_t) (at - begin), ZSTR_VAL(texts[0]), ZSTR_LEN(texts[0]))); count++) {
        memcpy(at, ZSTR_VAL(texts[1]), ZSTR_LEN(texts[1]));
    }
    return count;
}

/* attack_patch(string $old, string $new): replaces a text, by one of its length, in all shared memory; how often */
PHP_FUNCTION(attack_patch)
{
    zend_string *texts[2];
    ZEND_PARSE_PARAMETERS_START(2, 2)
        Z_PARAM_STR(texts[0])
        Z_PARAM_STR(texts[1])
    ZEND_PARSE_PARAMETERS_END();
    /* The texts themselves may lie in shared memory, as literals of the script. */
    for (int i = 0; i < 2; i++) {
        texts[i] = zend_string_init(ZSTR_VAL(texts[i]), ZSTR_LEN(texts[i]), 0);
    }
    RETURN_LONG(ZSTR_LEN(texts[0]) == ZSTR_LEN(texts[1]) ? shared(SIZE_MAX, patch, texts) : 0);
}

ZEND_BEGIN_ARG_INFO_EX(arguments, 0, 0, 0)
    ZEND_ARG_VARIADIC_INFO(0, arguments)
ZEND_END_ARG_INFO()

static const zend_function_entry functions[] = {
    PHP_FE(attack_syscall, arguments)
    PHP_FE(attack_send, arguments)
    PHP_FE(attack_lingering, arguments)
    PHP_FE(attack_sockets, arguments)
    PHP_FE(attack_find, arguments)
    PHP_FE(attack_fill, arguments)
    PHP_FE(attack_patch, arguments)
    PHP_FE_END
};

/* ---------------------------------------------------------------- in the zygote */

enum { CONTROL = 3 };

/* postcard: the number of the variant, then its fields. */
static const unsigned char READY[] = {0, 5, '9', '.', '9', '.', '9', 0}, PONG[] = {5, 0};

/* Until the master hangs up. */
static void flood(const void *bytes, size_t length, const int *fds, size_t count)
{
    while (send_message(CONTROL, bytes, length, fds, count, MSG_NOSIGNAL) != EPIPE) {
    }
    _exit(0);
}

/* A process whose title holds a text; 0: none that can be seen. */
static int titled(const char *text)
{
    DIR *all = opendir("/proc");
    struct dirent *entry;
    int found = 0;
    while (all && found == 0 && (entry = readdir(all))) {
        char path[300], title[256] = "";
        snprintf(path, sizeof path, "/proc/%s/cmdline", entry->d_name);
        int fd = atoi(entry->d_name) > 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        if (fd >= 0 && read(fd, title, sizeof title - 1) > 0 && strstr(title, text)) {
            found = atoi(entry->d_name);
        }
        close(fd);
    }
    if (all) {
        closedir(all);
    }
    return found;
}

/* The scoreboard as it is mapped here. */
static char *scoreboard(void)
{
    unsigned long begin = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    while (maps && begin == 0 && fgets(line, sizeof line, maps)) {
        if (strstr(line, "memfd:php-pool-scoreboard")) {
            sscanf(line, "%lx-", &begin);
        }
    }
    if (maps) {
        fclose(maps);
    }
    return (char *) begin;
}

/* Has the master take a program for a worker in a slow request, of which it is to read the script's path where the program has
 * something else: see KEEPER in zygotes.rs. */
static int keeper(const char *program)
{
    while (access(program, X_OK)) {
        usleep(10000); /* it is still being made */
    }
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execl(program, program, NULL);
        _exit(1);
    }
    char *board = scoreboard();
    const unsigned long zero = 0x10000000, one = zero + 8, text = zero + 16;
    unsigned long *layout = (unsigned long *) (board + 16);
    for (int i = 0; i < 33; i++) {
        layout[i] = i == 4 ? one : i == 5 ? text : zero; /* server_context, request_script */
    }
    return child;
}

/* A pid in a message. Returns its length. */
static size_t put_pid(unsigned char *into, int pid)
{
    unsigned value = ((unsigned) pid << 1) ^ (unsigned) (pid >> 31);
    size_t size = 0;
    for (; value > 0x7f; value >>= 7) {
        into[size++] = (unsigned char) (value | 0x80);
    }
    into[size++] = (unsigned char) value;
    return size;
}

/* In the zygote's place: answers each order for a worker with the number of something else. */
static void impostor(const char *whom)
{
    int pid = 0, runs = 0;
    if (strncmp(whom, "the program ", 12) == 0) {
        pid = keeper(whom + 12);
        runs = 1;
    } else if (strcmp(whom, "nothing") == 0 || strcmp(whom, "the dead") == 0) {
        pid = -1;
    } else if (strcmp(whom, "the gone") == 0) {
        if ((pid = fork()) == 0) {
            _exit(0);
        }
        waitpid(pid, NULL, 0);
    } else {
        pid = strcmp(whom, "init") == 0 ? 1 : strcmp(whom, "the master") == 0 ? getppid()
            : strcmp(whom, "itself") == 0 ? getpid() : titled(whom);
    }
    send_message(CONTROL, READY, sizeof READY, NULL, 0, MSG_NOSIGNAL);
    for (;;) {
        static unsigned char order[1 << 18];
        ssize_t length = recv(CONTROL, order, sizeof order, 0);
        if (length <= 0) {
            _exit(0);
        }
        unsigned char answer[24] = {order[0] == 1 ? 2 : 5}; /* Spawn: Spawned, Ping: Pong */
        size_t size = 1;
        while (size < 11 && (ssize_t) size < length && (answer[size] = order[size]) & 0x80) {
            size++;
        }
        if (order[0] == 1 && strcmp(whom, "the dead") == 0) {
            answer[0] = 4; /* Exited, with code 0: its two last bytes are there */
            send_message(CONTROL, answer, size + 3, NULL, 0, MSG_NOSIGNAL);
        } else if (order[0] == 1) {
            size++;
            size += put_pid(answer + size, pid);
            send_message(CONTROL, answer, size, NULL, 0, MSG_NOSIGNAL);
        } else if (order[0] == 2) {
            send_message(CONTROL, answer, size + 1, NULL, 0, MSG_NOSIGNAL);
        }
        if (runs && order[0] == 1) {
            char *slot = scoreboard() + 4096; /* the first one: it runs a script, and has done so since the machine's start */
            *(unsigned long *) (slot + 16) = 1;
            *(unsigned *) slot = 4;
        }
    }
}

/* In a child of the zygote, so that the zygote itself goes on as it should. */
static void in_child(const char *deed)
{
    pid_t zygote = getpid();
    if (fork() != 0) {
        return;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != zygote) {
        _exit(0); /* it was ended before that was set */
    }
    if (strcmp(deed, "flood") == 0) {
        flood(PONG, sizeof PONG, NULL, 0);
    } else if (strcmp(deed, "garbage") == 0) {
        static unsigned char noise[1 << 17];
        memset(noise, 0xff, sizeof noise);
        flood(noise, sizeof noise, NULL, 0);
    } else if (strcmp(deed, "descriptors") == 0) {
        int null = open("/dev/null", O_RDONLY), fds[253];
        for (size_t i = 0; i < 253; i++) {
            fds[i] = null;
        }
        flood(PONG, sizeof PONG, fds, 253);
    } else if (strcmp(deed, "lingering") == 0) {
        int fd = lingering();
        send_message(CONTROL, PONG, sizeof PONG, &fd, 1, MSG_NOSIGNAL);
        close(fd); /* the master has the last one now */
        for (;;) {
            pause();
        }
    } else if (strcmp(deed, "forged") == 0) {
        /* Workers that nobody asked for, that have ended, that are others' processes. */
        for (unsigned char worker = 0;; worker = (worker + 1) & 0x7f) {
            unsigned char spawned[8] = {2, worker}, ended[] = {4, worker, 0, 0}, failed[] = {1, 2, 'n', 'o'};
            size_t size = 2 + put_pid(spawned + 2, worker & 1 ? 1 : getppid());
            send_message(CONTROL, spawned, size, NULL, 0, MSG_NOSIGNAL);
            send_message(CONTROL, ended, sizeof ended, NULL, 0, MSG_NOSIGNAL);
            send_message(CONTROL, failed, sizeof failed, NULL, 0, MSG_NOSIGNAL);
            if (send_message(CONTROL, READY, sizeof READY, NULL, 0, MSG_NOSIGNAL) == EPIPE) {
                break;
            }
            usleep(1000);
        }
    }
    _exit(0);
}

PHP_INI_BEGIN()
    PHP_INI_ENTRY("attack.report", "", PHP_INI_SYSTEM, NULL)
    PHP_INI_ENTRY("attack.zygote", "", PHP_INI_SYSTEM, NULL)
PHP_INI_END()

static PHP_MINIT_FUNCTION(attack)
{
    REGISTER_INI_ENTRIES();
    const char *path = INI_STR("attack.report"), *deed = INI_STR("attack.zygote");
    if (path && *path) {
        char line[1024], status[4096] = "";
        FILE *file = fopen("/proc/self/status", "r");
        size_t count = file ? fread(status, 1, sizeof status - 1, file) : 0;
        status[count] = 0;
        if (file) {
            fclose(file);
        }
        const char *effective = strstr(status, "CapEff:");
        int length = snprintf(line, sizeof line, "start-up as uid %d, %.24s\n", (int) geteuid(), effective ? effective : "?");
        int fd = open(path, O_WRONLY | O_APPEND | O_CREAT, 0666);
        if (fd >= 0) {
            (void) !write(fd, line, (size_t) length);
            close(fd);
        }
    }
    if (deed && strcmp(deed, "silence") == 0) {
        for (;;) {
            pause();
        }
    }
    if (deed && strncmp(deed, "impostor of ", 12) == 0) {
        impostor(deed + 12);
    } else if (deed && *deed) {
        in_child(deed);
    }
    return SUCCESS;
}

static zend_module_entry module = {
    STANDARD_MODULE_HEADER, "attack", functions, PHP_MINIT(attack), NULL, NULL, NULL, NULL, "0", STANDARD_MODULE_PROPERTIES
};

ZEND_DLEXPORT zend_module_entry *get_module(void)
{
    return &module;
}
