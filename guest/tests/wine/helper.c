// What the tests under wine need inside a Windows: something that holds a mutex, bears a name, is a service, reads a window, keeps a
// store, or runs a queue. One file of C, as it has to be built for Windows without the program's own code. Built by guest/test-wine.sh.
#include <windows.h>
#include <sddl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STORE "C:\\xenstore\\"

static SERVICE_STATUS_HANDLE manager;
static HANDLE stop;

static void tell(DWORD state) {
    SERVICE_STATUS status = {SERVICE_WIN32_OWN_PROCESS, state, SERVICE_ACCEPT_STOP, 0, 0, 0, 0};
    SetServiceStatus(manager, &status);
}

static DWORD WINAPI control(DWORD code, DWORD type, void *data, void *context) {
    (void)type, (void)data, (void)context;
    if (code == SERVICE_CONTROL_STOP) {
        tell(SERVICE_STOPPED);
        SetEvent(stop);
    }
    return NO_ERROR;
}

static void WINAPI serve(DWORD count, char **words) {
    (void)count, (void)words;
    stop = CreateEventA(NULL, TRUE, FALSE, NULL);
    manager = RegisterServiceCtrlHandlerExA("helper", control, NULL);
    tell(SERVICE_RUNNING);
    WaitForSingleObject(stop, INFINITE);
}

// A key is a file; what separates its parts is no letter of any key.
static void file_of(char *file, size_t size, const char *key) {
    snprintf(file, size, STORE "%s", key);
    for (char *c = file + strlen(STORE); *c; c++)
        if (*c == '/') *c = '!';
}

// As the vendor's program: read, write, remove; what it cannot do is its exit code.
static int store(int count, char **words) {
    char file[1024], pattern[1040];
    CreateDirectoryA(STORE, NULL);
    // One that never answers.
    if (GetFileAttributesA("C:\\hang") != INVALID_FILE_ATTRIBUTES) Sleep(INFINITE);
    file_of(file, sizeof file, words[2]);
    if (!strcmp(words[1], "read")) {
        char value[4096];
        FILE *f = fopen(file, "rb");
        if (!f) return 1;
        size_t length = fread(value, 1, sizeof value, f);
        fclose(f);
        fwrite(value, 1, length, stdout);
        puts("");
        return 0;
    }
    if (!strcmp(words[1], "write") && count == 4) {
        FILE *f = fopen(file, "wb");
        if (!f) return 1;
        fputs(words[3], f);
        return fclose(f);
    }
    if (!strcmp(words[1], "remove")) {
        BOOL any = DeleteFileA(file);
        WIN32_FIND_DATAA found;
        snprintf(pattern, sizeof pattern, "%s!*", file);
        for (HANDLE all = FindFirstFileA(pattern, &found); all != INVALID_HANDLE_VALUE;) {
            snprintf(pattern, sizeof pattern, STORE "%s", found.cFileName);
            any |= DeleteFileA(pattern);
            if (!FindNextFileA(all, &found)) {
                FindClose(all);
                break;
            }
        }
        return !any;
    }
    return 2;
}

// Waits until the window of findings has something to say that does not begin with `not`, and prints it.
static HWND said(const char *not) {
    static char text[1 << 16];
    for (int n = 0; n < 300; n++, Sleep(100)) {
        HWND window = FindWindowA("LaminaFindings", NULL);
        HWND edit = window ? FindWindowExA(window, NULL, "EDIT", NULL) : NULL;
        if (!edit || !SendMessageA(edit, WM_GETTEXT, sizeof text, (LPARAM)text)) continue;
        if (!strncmp(text, "Looking", 7) || (*not && !strncmp(text, not, strlen(not)))) continue;
        printf("%s", text);
        return window;
    }
    exit(1);
}

int main(int count, char **words) {
    const char *what = count > 1 ? words[1] : "";
    if (strstr(words[0], "xenstore_client")) return count > 2 ? store(count, words) : 2;
    // As .NET's: it writes down who was asked for what.
    if (!strcmp(what, "executequeueditems")) {
        char own[MAX_PATH];
        FILE *f = fopen("C:\\ngen.txt", "ab");
        if (!f || !GetModuleFileNameA(NULL, own, sizeof own)) return 1;
        fprintf(f, "%s: %d argument\n", own, count - 1);
        return fclose(f);
    }
    if (!strcmp(what, "service")) {
        SERVICE_TABLE_ENTRYA table[] = {{"helper", serve}, {NULL, NULL}};
        return !StartServiceCtrlDispatcherA(table);
    }
    if (!strcmp(what, "read-window")) return !said("");
    if (!strcmp(what, "press-again")) {
        HWND window = FindWindowA("LaminaFindings", NULL);
        if (!window) return 1;
        PostMessageA(window, WM_COMMAND, IDOK, 0);
        // What was said before has one more finding.
        return !said(words[2]);
    }
    if (!strcmp(what, "press-close")) {
        HWND window = FindWindowA("LaminaFindings", NULL);
        return !(window && PostMessageA(window, WM_CLOSE, 0, 0));
    }
    // So many lines, and a step that asks for input.
    if (!strcmp(what, "print") && count > 2) {
        for (long n = 1, last = atol(words[2]); n <= last; n++) printf("line %ld\n", n);
        return 0;
    }
    if (!strcmp(what, "ask")) return getchar() == EOF ? 9 : 0;
    // "hold [mutex [who may do what with it]]" owns it, "open mutex" only has it.
    SECURITY_ATTRIBUTES rights = {sizeof rights, NULL, FALSE};
    if (count > 3 && !ConvertStringSecurityDescriptorToSecurityDescriptorA(
                         words[3], SDDL_REVISION_1, &rights.lpSecurityDescriptor, NULL)) return 1;
    if (count > 2 && !CreateMutexA(count > 3 ? &rights : NULL, !strcmp(what, "hold"), words[2])) return 1;
    puts("ready");
    fflush(stdout);
    Sleep(120000);
    return 0;
}
